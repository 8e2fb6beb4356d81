package org.mamba4j.text;

import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Objects;
import java.util.Set;
import java.util.Spliterator;
import java.util.Spliterators.AbstractSpliterator;
import java.util.concurrent.Flow;
import java.util.function.Consumer;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.Session;
import org.mamba4j.Tensor;

/**
 * A model with its tokenizer: text in, text out. Thread-safe; every generation has a sequence of its own. Closing it
 * closes model and tokenizer; generations that still run fail with {@link IllegalStateException}.
 *
 * <pre>{@code
 * try (TextModel model = TextModel.load("state-spaces/mamba-130m-hf")) {
 *   model.generate("The capital of France is", GenerationOptions.defaults(), token -> System.out.print(token.text()));
 * }
 * }</pre>
 *
 * <p>A prompt is fed with the special tokens that the tokenizer's own post-processor adds, nothing else. A model without
 * a tokenizer, see {@link Tokenizer#load}, works on token ids; its texts are empty.
 */
public final class TextModel implements AutoCloseable {
  private static final int SCORE_CHUNK = 64; // bounds the logits held at once to 64 rows

  private final Model model;
  private final Tokenizer tokenizer; // null if the model has none
  private final int vocabSize;
  private final String noTokenizer; // what is missing, null if nothing is
  private final Set<Integer> endTokens;

  private TextModel(Model model, Tokenizer tokenizer, String noTokenizer, Set<Integer> endTokens) {
    this.model = model;
    this.tokenizer = tokenizer;
    this.noTokenizer = noTokenizer;
    this.endTokens = endTokens;
    int modelVocab = Math.toIntExact(model.config().vocabSize());
    this.vocabSize = tokenizer == null ? modelVocab : Math.min(modelVocab, tokenizer.vocabSize());
  }

  /** Loads a model folder with {@link ModelOptions#defaults()}. */
  public static TextModel load(Path folder) throws IOException {
    return load(folder, ModelOptions.defaults());
  }

  /** Loads a model folder, see {@link Model#load(Path, ModelOptions)} and {@link Tokenizer#load}. */
  public static TextModel load(Path folder, ModelOptions options) throws IOException {
    return with(Model.load(folder, options));
  }

  /** Loads a folder or a repository of the hub with {@link ModelOptions#defaults()}. */
  public static TextModel load(String idOrPath) throws IOException {
    return load(idOrPath, ModelOptions.defaults());
  }

  /** Loads a folder or a repository of the hub, see {@link Model#load(String, ModelOptions)}. */
  public static TextModel load(String idOrPath, ModelOptions options) throws IOException {
    return with(Model.load(idOrPath, options));
  }

  private static TextModel with(Model model) throws IOException {
    Tokenizer tokenizer = null;
    try {
      Set<Integer> ends = new HashSet<>();
      for (int id : model.config().eosTokenIds()) {
        ends.add(id);
      }
      if (Tokenizer.isPresent(model.folder())) {
        tokenizer = Tokenizer.load(model.folder());
        ends.addAll(tokenizer.endTokens());
      } else {
        ends.addAll(TokenizerFiles.endTokens(model.folder()));
      }
      String missing = tokenizer == null ? Tokenizer.missing(model.folder()) : null;
      return new TextModel(model, tokenizer, missing, Set.copyOf(ends));
    } catch (Throwable e) {
      if (tokenizer != null) {
        tokenizer.close();
      }
      model.close();
      throw e;
    }
  }

  public Model model() {
    return model;
  }

  /** Whether texts can be encoded and decoded; without a tokenizer only token ids work. */
  public boolean hasTokenizer() {
    return tokenizer != null;
  }

  /**
   * @throws IllegalStateException if the model has no tokenizer; the message says what is missing
   */
  public Tokenizer tokenizer() {
    if (tokenizer == null) {
      throw new IllegalStateException(noTokenizer);
    }
    return tokenizer;
  }

  /** Ids that end a text unless {@link GenerationOptions#stopTokens()} says otherwise. */
  public Set<Integer> endTokens() {
    return endTokens;
  }

  /** Continues a prompt. */
  public GenerationResult generate(String prompt, GenerationOptions options) {
    return generate(encodePrompt(prompt), options);
  }

  /** Continues a prompt, handing over each token, in this thread, as soon as it is known. */
  public GenerationResult generate(String prompt, GenerationOptions options, Consumer<? super GeneratedToken> onToken) {
    return generate(encodePrompt(prompt), options, onToken);
  }

  /** Continues token ids, to which nothing is added. */
  public GenerationResult generate(int[] prompt, GenerationOptions options) {
    return generate(prompt, options, _ -> {});
  }

  /** Continues token ids, to which nothing is added, handing over each token as soon as it is known. */
  public GenerationResult generate(int[] prompt, GenerationOptions options, Consumer<? super GeneratedToken> onToken) {
    Objects.requireNonNull(onToken, "onToken");
    try (Generation generation = start(prompt, options)) {
      for (GeneratedToken token = generation.next(); token != null; token = generation.next()) {
        onToken.accept(token);
      }
      return generation.result();
    }
  }

  /**
   * Continues a prompt as a sequential stream that computes a token when it is asked for one. Closing it, or reading it to
   * its end, releases the sequence.
   */
  public Stream<GeneratedToken> stream(String prompt, GenerationOptions options) {
    return stream(encodePrompt(prompt), options);
  }

  /** As {@link #stream(String, GenerationOptions)}, from token ids. */
  public Stream<GeneratedToken> stream(int[] prompt, GenerationOptions options) {
    return stream(start(prompt, options));
  }

  static Stream<GeneratedToken> stream(Generation generation) {
    var tokens = new AbstractSpliterator<GeneratedToken>(Long.MAX_VALUE, Spliterator.ORDERED | Spliterator.NONNULL) {
      @Override
      public boolean tryAdvance(Consumer<? super GeneratedToken> action) {
        GeneratedToken token = null;
        try {
          token = generation.next();
        } finally {
          if (token == null) {
            generation.close();
          }
        }
        if (token == null) {
          return false;
        }
        action.accept(token);
        return true;
      }
    };
    return StreamSupport.stream(tokens, false).onClose(() -> {
      generation.abort();
      generation.close();
    });
  }

  /**
   * Continues a prompt for each subscriber, on a daemon thread, never computing more tokens than were requested.
   * Cancelling the subscription ends the generation.
   */
  public Flow.Publisher<GeneratedToken> publisher(String prompt, GenerationOptions options) {
    return publisher(encodePrompt(prompt), options);
  }

  /** As {@link #publisher(String, GenerationOptions)}, from token ids. */
  public Flow.Publisher<GeneratedToken> publisher(int[] prompt, GenerationOptions options) {
    int[] ids = checkPrompt(prompt).clone();
    return new TokenPublisher(() -> start(ids, options));
  }

  /** How likely the model finds a text, with the special tokens that its tokenizer adds. */
  public Score score(String text) {
    return score(tokenizer().encode(text));
  }

  /**
   * How likely the model finds a sequence of token ids.
   *
   * @throws IllegalArgumentException if there are fewer than two: the first one is not predicted by anything
   */
  public Score score(int[] ids) {
    requirePredicted(ids);
    float[] logProbs = new float[ids.length - 1];
    Exponentials exponentials = new Exponentials();
    try (Session session = model.newSession()) {
      for (int from = 0; from < logProbs.length; from += SCORE_CHUNK) {
        int to = Math.min(from + SCORE_CHUNK, logProbs.length);
        Tensor logits = session.advanceAll(Arrays.copyOfRange(ids, from, to)); // [to - from, vocab]
        for (int i = from; i < to; i++) {
          logProbs[i] = logSoftmaxAt(logits.select(0, i - from).toFloatArray(), ids[i + 1], exponentials);
        }
      }
    }
    return new Score(ids.clone(), logProbs);
  }

  /**
   * Lets this model and another one predict a sequence of token ids side by side.
   *
   * @throws IllegalArgumentException if there are fewer than two ids, or the vocabularies differ in size
   */
  public Comparison compare(int[] ids, TextModel reference) {
    requirePredicted(ids);
    if (model.config().vocabSize() != reference.model.config().vocabSize()) {
      throw new IllegalArgumentException("the models have vocabularies of %d and %d tokens, expected the same"
          .formatted(model.config().vocabSize(), reference.model.config().vocabSize()));
    }
    float[] logProbs = new float[ids.length - 1];
    float[] referenceLogProbs = new float[logProbs.length];
    double[] divergences = new double[logProbs.length];
    try (Session session = model.newSession();
        Session referenceSession = reference.model.newSession()) {
      for (int from = 0; from < logProbs.length; from += SCORE_CHUNK) {
        int to = Math.min(from + SCORE_CHUNK, logProbs.length);
        int[] chunk = Arrays.copyOfRange(ids, from, to);
        Tensor logits = session.advanceAll(chunk); // [to - from, vocab]
        Tensor referenceLogits = referenceSession.advanceAll(chunk);
        for (int i = from; i < to; i++) {
          LogSoftmax found = LogSoftmax.of(logits.select(0, i - from).toFloatArray());
          LogSoftmax expected = LogSoftmax.of(referenceLogits.select(0, i - from).toFloatArray());
          int next = checkId(ids[i + 1], found.logits().length);
          logProbs[i] = (float) found.at(next);
          referenceLogProbs[i] = (float) expected.at(next);
          divergences[i] = expected.divergenceFrom(found);
        }
      }
    }
    return new Comparison(
        new Score(ids.clone(), logProbs), new Score(ids.clone(), referenceLogProbs), divergences);
  }

  private static void requirePredicted(int[] ids) {
    if (ids.length < 2) {
      throw new IllegalArgumentException("a score needs at least 2 tokens, got " + ids.length
          + ": the first one is given, each further one is predicted from those before it");
    }
  }

  private static int checkId(int id, int count) {
    if (id < 0 || id >= count) {
      throw new IllegalArgumentException("token id " + id + ", expected 0 to " + (count - 1));
    }
    return id;
  }

  private static float logSoftmaxAt(float[] logits, int id, Exponentials exponentials) {
    checkId(id, logits.length);
    float max = Float.NEGATIVE_INFINITY;
    for (float logit : logits) {
      max = Math.max(max, logit);
    }
    float logit = logits[id];
    return (float) (logit - max - Math.log(exponentials.compute(logits, max, 1, logits.length, logits)));
  }

  private int[] encodePrompt(String prompt) {
    return tokenizer().encode(prompt);
  }

  private static int[] checkPrompt(int[] prompt) {
    if (prompt.length == 0) {
      throw new IllegalArgumentException("the prompt is empty: it has no tokens, and this model's tokenizer adds none;"
          + " a model needs at least one token to continue from");
    }
    return prompt;
  }

  private Generation start(int[] prompt, GenerationOptions options) {
    int[] ids = checkPrompt(prompt).clone();
    Set<Integer> stops = options.stopTokens() == null ? endTokens : options.stopTokens();
    StreamDecoder decoder = tokenizer == null ? null : tokenizer.newStreamDecoder(ids);
    Session session = model.newSession();
    return new Generation(
        (sampler, tokens, from, length) -> {
          if (sampler == null) {
            session.advance(tokens, from, length);
            return 0;
          }
          return session.next(sampler, tokens, from, length);
        },
        session::close, ids, vocabSize, decoder, stops, options);
  }

  @Override
  public void close() {
    model.close();
    if (tokenizer != null) {
      tokenizer.close();
    }
  }
}
