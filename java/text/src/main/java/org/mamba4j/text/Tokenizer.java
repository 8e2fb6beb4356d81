package org.mamba4j.text;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.djl.huggingface.tokenizers.jni.LibUtils;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.CharsetEncoder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.locks.ReadWriteLock;
import java.util.concurrent.locks.ReentrantReadWriteLock;
import java.util.function.Function;
import org.mamba4j.checkpoint.GgufFile;

/**
 * A Hugging Face {@code tokenizer.json}, or the vocabulary of a GGUF file. Thread-safe; closing waits for running
 * calls, later calls throw {@link IllegalStateException}.
 */
public final class Tokenizer implements AutoCloseable {
  private final HuggingFaceTokenizer library;
  private final TokenizerFiles files;
  private final ReadWriteLock lock = new ReentrantReadWriteLock();
  private boolean closed;

  private Tokenizer(HuggingFaceTokenizer library, TokenizerFiles files) {
    this.library = library;
    this.files = files;
  }

  /**
   * Whether the folder holds, or beside the GGUF file lies, a tokenizer that {@link #load} could read, or the GGUF file
   * itself has one.
   */
  public static boolean isPresent(Path model) throws IOException {
    return Files.isRegularFile(file(model)) || GgufTokenizer.missing(model).isEmpty();
  }

  private static Path file(Path model) {
    return TokenizerFiles.of(model, TokenizerFiles.TOKENIZER);
  }

  /**
   * The {@code tokenizer.json} that {@link #load} takes for a model without such a file: the vocabulary of its GGUF
   * file; empty if there is none to be had.
   */
  public static Optional<byte[]> jsonOfGguf(Path model) throws IOException {
    if (GgufTokenizer.missing(model).isPresent()) {
      return Optional.empty();
    }
    return Optional.of(GgufTokenizer.json(GgufFile.find(model).orElseThrow()));
  }

  /** What keeps {@link #load} from finding a tokenizer. */
  static String missing(Path model) throws IOException {
    String why = GgufFile.find(model).isEmpty() ? "" : ", and " + GgufTokenizer.missing(model).orElse("");
    return file(model) + " is missing" + why + ": text needs the model's tokenizer; token ids work without it";
  }

  /**
   * Loads {@code tokenizer.json} and, where present, the end-of-text tokens named by {@code tokenizer_config.json} and
   * {@code generation_config.json}. {@code model} is a folder, or a GGUF file with these beside it; without a {@code
   * tokenizer.json} the vocabulary in the GGUF file is taken if it is byte-level BPE with the splits of GPT-2.
   *
   * @throws IOException if the file is missing, unreadable or no tokenizer; the message names it
   */
  public static Tokenizer load(Path model) throws IOException {
    Path file = file(model);
    if (Files.isRegularFile(file)) {
      TokenizerFiles files = TokenizerFiles.read(file);
      try (InputStream in = Files.newInputStream(file)) {
        return load(file, in, files);
      }
    }
    Optional<byte[]> vocabulary = jsonOfGguf(model);
    if (vocabulary.isEmpty()) {
      throw new IOException(missing(model));
    }
    Path gguf = GgufFile.find(model).orElseThrow();
    byte[] json = vocabulary.get();
    return load(gguf, new ByteArrayInputStream(json), TokenizerFiles.read(gguf, json));
  }

  private static Tokenizer load(Path file, InputStream in, TokenizerFiles files) throws IOException {
    NativeLibrary.load();
    // The library would cut texts at 512 tokens by itself.
    Map<String, String> options = Map.of("truncation", "false", "padding", "false");
    try {
      return new Tokenizer(HuggingFaceTokenizer.newInstance(in, options), files);
    } catch (RuntimeException e) {
      throw new IOException(file + " is not a tokenizer that can be read: " + e.getMessage(), e);
    }
  }

  /**
   * Token ids of a text, with the special tokens that the tokenizer's own post-processor adds and no others. Unpaired
   * surrogates count as U+FFFD.
   *
   * @throws IllegalArgumentException if the vocabulary has no tokens for the text, not even one for the unknown
   */
  public int[] encode(String text) {
    return encode(text, true);
  }

  /** Token ids of a text alone, to be appended to other ids. */
  public int[] encodeWithoutSpecialTokens(String text) {
    return encode(text, false);
  }

  private int[] encode(String text, boolean addSpecialTokens) {
    String wellFormed = wellFormed(Objects.requireNonNull(text, "text"));
    long[] ids = using(library -> library.encode(wellFormed, addSpecialTokens, false).getIds());
    int[] result = new int[ids.length];
    for (int i = 0; i < ids.length; i++) {
      result[i] = Math.toIntExact(ids[i]);
    }
    return result;
  }

  private static String wellFormed(String text) {
    CharsetEncoder encoder = StandardCharsets.UTF_8.newEncoder();
    return encoder.canEncode(text)
        ? text
        : text.codePoints()
            .map(c -> Character.getType(c) == Character.SURROGATE ? 0xFFFD : c)
            .collect(StringBuilder::new, StringBuilder::appendCodePoint, StringBuilder::append)
            .toString();
  }

  /**
   * The text of token ids. Special tokens and ids beyond the vocabulary have none; bytes that are not UTF-8 show as
   * U+FFFD.
   */
  public String decode(int... ids) {
    return decode(ids, 0, ids.length);
  }

  String decode(int[] ids, int from, int to) {
    Objects.checkFromToIndex(from, to, ids.length);
    long[] known = new long[to - from];
    int count = 0;
    for (int i = from; i < to; i++) {
      if (hasText(ids[i])) {
        known[count++] = ids[i];
      }
    }
    long[] exact = count == known.length ? known : Arrays.copyOf(known, count);
    return using(library -> exact.length == 0 ? "" : library.decode(exact, true));
  }

  /** False for special tokens and ids beyond the vocabulary. */
  boolean hasText(int id) {
    if (id < 0) {
      throw new IllegalArgumentException("token id " + id + " is negative");
    }
    return id < files.vocabSize() && !files.special().get(id);
  }

  /** Highest token id + 1. A model's own vocabulary may be larger: padding, which has no text. */
  public int vocabSize() {
    return files.vocabSize();
  }

  /** Ids that end a text, as tokenizer_config.json and generation_config.json name them; may be empty. */
  public Set<Integer> endTokens() {
    return files.endTokens();
  }

  /** Decodes a new text token by token. */
  public StreamDecoder newStreamDecoder() {
    return new StreamDecoder(this, new int[0]);
  }

  /**
   * Decodes the continuation of a text token by token: what its tokens add to the text of {@code before}. With tokenizers
   * that drop a space at the beginning of a text, the first word keeps its space this way.
   */
  public StreamDecoder newStreamDecoder(int... before) {
    return new StreamDecoder(this, before);
  }

  private <T> T using(Function<HuggingFaceTokenizer, T> call) {
    lock.readLock().lock();
    try {
      if (closed) {
        throw new IllegalStateException("the tokenizer is closed");
      }
      return apply(call);
    } finally {
      lock.readLock().unlock();
    }
  }

  private <T> T apply(Function<HuggingFaceTokenizer, T> call) {
    try {
      return call.apply(library);
    } catch (RuntimeException e) {
      throw new IllegalArgumentException("the tokenizer cannot process this: " + e.getMessage(), e);
    }
  }

  @Override
  public void close() {
    lock.writeLock().lock();
    try {
      if (!closed) {
        closed = true;
        library.close();
      }
    } finally {
      lock.writeLock().unlock();
    }
  }

  /** Loads the tokenizer library's native code so that it stays off the network. */
  private static final class NativeLibrary {
    private static final String FLAVOR = "RUST_FLAVOR";
    private static final String NO_TRACKING = "OPT_OUT_TRACKING";

    private NativeLibrary() {}

    /**
     * Where a CUDA runtime is installed the library looks for a GPU build on the network unless told which build to use.
     * It reads the setting once, so other users of the library in this JVM are not affected. It reports its use unless
     * told not to, each time a tokenizer is created.
     */
    static synchronized void load() {
      if (System.getProperty(NO_TRACKING) == null) {
        System.setProperty(NO_TRACKING, "true");
      }
      String flavor = System.getenv(FLAVOR);
      if (flavor != null && !flavor.isEmpty() && !flavor.equals("cpu")) {
        throw new IllegalStateException("the environment variable RUST_FLAVOR is '" + flavor
            + "', which makes the tokenizer library download another build; unset it or set it to cpu");
      }
      String before = System.getProperty(FLAVOR);
      System.setProperty(FLAVOR, "cpu");
      try {
        LibUtils.checkStatus();
      } finally {
        if (before == null) {
          System.clearProperty(FLAVOR);
        } else {
          System.setProperty(FLAVOR, before);
        }
      }
    }
  }
}
