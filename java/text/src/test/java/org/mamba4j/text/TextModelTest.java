package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Flow;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.Engine;
import org.mamba4j.SamplingOptions;
import org.mamba4j.checkpoint.SafetensorsFile;

/** Real models: the bundled one, and the goldens, which have no tokenizer. */
@Timeout(120)
class TextModelTest {
  private static final Path GOLDENS = Path.of("../../tests/goldens");
  private static final GenerationOptions TWENTY = GenerationOptions.defaults().withMaxNewTokens(20);

  private static TextModel demo;

  @TempDir Path folder;

  @BeforeAll
  static void load() throws IOException {
    demo = TextModel.load(Fixtures.DEMO_MODEL);
  }

  @AfterAll
  static void close() {
    demo.close();
  }

  @Test
  void theBundledModelWritesJava() {
    GenerationResult result = demo.generate(Fixtures.DEMO_PROMPT, TWENTY);
    assertArrayEquals(Fixtures.DEMO_PROMPT_IDS, result.promptTokens());
    assertArrayEquals(Fixtures.DEMO_CONTINUATION, result.tokens());
    assertEquals("\n\n    public Matrix(double[] data) {\n        this.data = data;\n    }\n\n   ", result.text());
    assertEquals(FinishReason.LENGTH, result.finishReason());
    assertTrue(result.timeToFirstToken().isPositive() && result.decodeTokensPerSecond() > 0);
    assertEquals(Set.of(0), demo.endTokens());
  }

  @Test
  void callbackStreamAndPublisherGiveTheSameTokens() throws Exception {
    List<GeneratedToken> seen = new ArrayList<>();
    demo.generate(Fixtures.DEMO_PROMPT, TWENTY, seen::add);
    assertArrayEquals(Fixtures.DEMO_CONTINUATION, seen.stream().mapToInt(GeneratedToken::id).toArray());

    try (Stream<GeneratedToken> stream = demo.stream(Fixtures.DEMO_PROMPT, TWENTY)) {
      assertEquals(seen, stream.toList());
    }
    CompletableFuture<List<GeneratedToken>> published = new CompletableFuture<>();
    demo.publisher(Fixtures.DEMO_PROMPT, TWENTY).subscribe(new Flow.Subscriber<>() {
      private final List<GeneratedToken> tokens = new ArrayList<>();
      private Flow.Subscription subscription;

      @Override
      public void onSubscribe(Flow.Subscription s) {
        subscription = s;
        s.request(1);
      }

      @Override
      public void onNext(GeneratedToken token) {
        tokens.add(token);
        subscription.request(1);
      }

      @Override
      public void onError(Throwable e) {
        published.completeExceptionally(e);
      }

      @Override
      public void onComplete() {
        published.complete(tokens);
      }
    });
    assertEquals(seen, published.get());
  }

  @Test
  void stopStringsCutRealText() {
    GenerationResult result = demo.generate(Fixtures.DEMO_PROMPT, TWENTY.withStopStrings("this.data = d", "never"));
    assertEquals("\n\n    public Matrix(double[] data) {\n        ", result.text());
    assertEquals(FinishReason.STOP_STRING, result.finishReason());
  }

  @Test
  void seedsDecideRandomTexts() {
    SamplingOptions sampling = SamplingOptions.random(0.9f, 1).withTopK(50).withTopP(0.95f).withRepetitionPenalty(1.1f);
    GenerationResult first = demo.generate("class A {", TWENTY.withSampling(sampling));
    assertArrayEquals(first.tokens(), demo.generate("class A {", TWENTY.withSampling(sampling)).tokens());
    assertFalse(Arrays.equals(
        first.tokens(), demo.generate("class A {", TWENTY.withSampling(sampling.withSeed(2))).tokens()));
  }

  @Test
  void scoresAgreeWithTheProbabilitiesOfGeneration() {
    List<GeneratedToken> tokens = new ArrayList<>();
    GenerationResult result = demo.generate(Fixtures.DEMO_PROMPT, TWENTY, tokens::add);
    Score score = demo.score(Fixtures.DEMO_PROMPT + result.text());
    int prompt = result.promptTokens().length;
    assertEquals(prompt + 20, score.tokens().length);
    for (int i = 0; i < 20; i++) {
      assertEquals(tokens.get(i).logProb(), score.logProbs()[prompt - 1 + i], 1e-4);
    }
    assertEquals(Math.exp(-score.totalLogProb() / (prompt + 19)), score.perplexity(), 1e-9);
    assertThrows(IllegalArgumentException.class, () -> demo.score(""));
    assertThrows(IllegalArgumentException.class, () -> demo.score(new int[] {1, 4096}));
  }

  @ParameterizedTest
  @ValueSource(strings = {
    "mamba1-tied", "mamba1-untied-bias", "falcon-mamba", "mamba2-g1", "mamba2-g2", "mamba2-g1-sharded"
  })
  void goldensScoreAndContinueAsTheReferenceDoes(String name) throws IOException {
    try (TextModel model = TextModel.load(GOLDENS.resolve(name));
        SafetensorsFile expected = SafetensorsFile.open(GOLDENS.resolve(name).resolve("expected.safetensors"))) {
      int[] ids = ints(expected.tensor("input_ids").select(0, 0).toLongArray());
      assertArrayEquals(
          expected.tensor("token_logprobs").select(0, 0).toFloatArray(), model.score(ids).logProbs(), 1e-4f);

      int[] tokens = ints(expected.tensor("greedy_tokens").select(0, 0).toLongArray());
      float[] margins = expected.tensor("greedy_margin").toFloatArray();
      int clear = 0;
      while (clear < tokens.length && margins[clear] > 1e-3) {
        clear++;
      }
      assertTrue(clear > 0);
      GenerationResult result = model.generate(
          ints(expected.tensor("greedy_prompt").select(0, 0).toLongArray()),
          GenerationOptions.defaults().withMaxNewTokens(clear).withStopTokens());
      assertArrayEquals(Arrays.copyOf(tokens, clear), result.tokens());
      assertEquals("", result.text());

      assertFalse(model.hasTokenizer());
      var e = assertThrows(IllegalStateException.class, () -> model.generate("x", TWENTY));
      assertTrue(e.getMessage().contains("tokenizer.json") && e.getMessage().contains(name), e.getMessage());
    }
  }

  private static int[] ints(long[] values) {
    return Arrays.stream(values).mapToInt(Math::toIntExact).toArray();
  }

  @Test
  void emptyPromptsAreExplained() throws IOException {
    assertEquals(1, demo.generate("", TWENTY).promptTokens().length, "the post-processor adds a token");
    for (var call : List.<Executable>of(
        () -> demo.generate(new int[0], TWENTY),
        () -> demo.stream(new int[0], TWENTY),
        () -> demo.publisher(new int[0], TWENTY))) {
      var e = assertThrows(IllegalArgumentException.class, call);
      assertTrue(e.getMessage().contains("the prompt is empty"), e.getMessage());
    }
    copyDemoModel();
    String json = Files.readString(Fixtures.DEMO_MODEL.resolve("tokenizer.json"));
    int from = json.indexOf("\"post_processor\"");
    Files.writeString(folder.resolve("tokenizer.json"),
        json.substring(0, from) + "\"post_processor\": null, " + json.substring(json.indexOf("\"decoder\"", from)));
    try (TextModel bare = TextModel.load(folder)) {
      assertThrows(IllegalArgumentException.class, () -> bare.generate("", TWENTY));
      assertArrayEquals(
          Arrays.copyOfRange(Fixtures.DEMO_PROMPT_IDS, 1, 14), bare.generate(Fixtures.DEMO_PROMPT, TWENTY).promptTokens());
    }
  }

  private void copyDemoModel() throws IOException {
    for (String file : List.of("config.json", "model.safetensors")) {
      Files.copy(Fixtures.DEMO_MODEL.resolve(file), folder.resolve(file));
    }
  }

  @Test
  void aVocabularyLargerThanTheTokenizersIsPadding() throws IOException {
    copyDemoModel();
    Fixtures.sentencePieceTokenizer(folder).close();
    try (TextModel model = TextModel.load(folder)) {
      assertTrue(model.tokenizer().vocabSize() < 300);
      for (SamplingOptions sampling : List.of(SamplingOptions.greedy(), SamplingOptions.random(2, 1))) {
        GenerationResult result = model.generate("Hello", TWENTY.withStopTokens().withSampling(sampling));
        assertTrue(Arrays.stream(result.tokens()).allMatch(id -> id < model.tokenizer().vocabSize()));
      }
    }
  }

  @Test
  void badIdsAndDamagedTokenizersLeaveNothingBehind() throws IOException {
    long before = Engine.nativeBytes();
    for (int bad : new int[] {-1, 4096, Integer.MAX_VALUE}) {
      assertThrows(IllegalArgumentException.class, () -> demo.generate(new int[] {1, bad}, TWENTY));
    }
    copyDemoModel();
    Files.writeString(folder.resolve("tokenizer.json"), "{}");
    assertThrows(IOException.class, () -> TextModel.load(folder));
    assertEquals(before, Engine.nativeBytes());
  }

  @Test
  void generationsReleaseTheirSequences() {
    long before = Engine.nativeBytes();
    demo.generate("x", TWENTY);
    try (Stream<GeneratedToken> stream = demo.stream("x", TWENTY)) {
      assertEquals(2, stream.limit(2).count());
    }
    demo.stream("x", TWENTY).forEach(token -> assertTrue(token.id() >= 0));
    assertThrows(ArithmeticException.class, () -> demo.generate("x", TWENTY, _ -> {
      throw new ArithmeticException();
    }));
    assertEquals(before, Engine.nativeBytes());
  }

  @Test
  void cancellationComesFromAnyThread() {
    Cancellation cancellation = new Cancellation();
    GenerationResult result = demo.generate(
        "class", TWENTY.withMaxNewTokens(1_000_000).withStopTokens().withCancellation(cancellation), token -> {
          if (token.index() == 3) {
            Thread canceller = Thread.ofVirtual().start(cancellation::cancel);
            while (canceller.isAlive()) {
              Thread.onSpinWait();
            }
          }
        });
    assertEquals(FinishReason.CANCELLED, result.finishReason());
    assertEquals(4, result.tokens().length);
  }

  @Test
  void closedModelsSaySo() throws IOException {
    TextModel model = TextModel.load(Fixtures.DEMO_MODEL);
    Stream<GeneratedToken> stream = model.stream("x", TWENTY);
    model.close();
    model.close();
    assertThrows(IllegalStateException.class, () -> model.generate("x", TWENTY));
    assertThrows(IllegalStateException.class, () -> model.generate(new int[] {1}, TWENTY));
    assertThrows(IllegalStateException.class, () -> model.score(new int[] {1, 2}));
    assertThrows(IllegalStateException.class, stream::toList);
    stream.close();
  }
}
