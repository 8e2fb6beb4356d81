package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class TokenizerTest {
  @TempDir Path folder;

  @Test
  void encodesWithExactlyTheTokensThePostProcessorAdds() {
    try (Tokenizer tokenizer = Fixtures.demoTokenizer()) {
      int[] ids = tokenizer.encode(Fixtures.DEMO_PROMPT);
      assertArrayEquals(Fixtures.DEMO_PROMPT_IDS, ids);
      assertEquals(Fixtures.DEMO_PROMPT, tokenizer.decode(ids));
      assertArrayEquals(
          Arrays.copyOfRange(ids, 1, ids.length),
          tokenizer.encodeWithoutSpecialTokens(Fixtures.DEMO_PROMPT));
      assertArrayEquals(new int[] {0}, tokenizer.encode(""));
      assertArrayEquals(new int[0], tokenizer.encodeWithoutSpecialTokens(""));
      assertEquals(4096, tokenizer.vocabSize());
      assertEquals(Set.of(0), tokenizer.endTokens());
    }
  }

  @Test
  void textsOfAnyContentAndLengthSurvive() {
    try (Tokenizer tokenizer = Fixtures.demoTokenizer()) {
      for (String text : List.of("a\0b", "😀 é \uFFFD \u2028", "\r\n\t", "x ".repeat(5000), "<|end", "日本語")) {
        assertEquals(text, tokenizer.decode(tokenizer.encode(text)));
      }
      assertEquals("a\uFFFDb\uFFFD", tokenizer.decode(tokenizer.encode("a\uD83Db\uDE00")));
      assertTrue(tokenizer.encode("x ".repeat(5000)).length > 4000, "not cut at 512 tokens");
    }
  }

  @Test
  void paddingOfTheModelsVocabularyHasNoText() {
    try (Tokenizer tokenizer = Fixtures.demoTokenizer()) {
      assertEquals("public", tokenizer.decode(0, 4096, 873, Integer.MAX_VALUE));
      assertEquals("", tokenizer.decode());
      assertThrows(IllegalArgumentException.class, () -> tokenizer.decode(-1));
    }
  }

  @Test
  void closedTokenizersSaySo() {
    Tokenizer tokenizer = Fixtures.demoTokenizer();
    StreamDecoder decoder = tokenizer.newStreamDecoder();
    tokenizer.close();
    tokenizer.close();
    assertThrows(IllegalStateException.class, () -> tokenizer.encode("x"));
    assertThrows(IllegalStateException.class, () -> decoder.next(873));
  }

  @Test
  void threadsShareATokenizerAndMayCloseIt() throws Exception {
    Tokenizer tokenizer = Fixtures.demoTokenizer();
    CountDownLatch using = new CountDownLatch(4);
    try (var executor = Executors.newFixedThreadPool(4)) {
      List<Callable<Integer>> tasks = Stream.generate(() -> (Callable<Integer>) () -> {
        for (int done = 0; ; done++) {
          try {
            assertEquals(Fixtures.DEMO_PROMPT, tokenizer.decode(tokenizer.encode(Fixtures.DEMO_PROMPT)));
          } catch (IllegalStateException closed) {
            return done;
          }
          if (done == 0) {
            using.countDown();
          }
        }
      }).limit(4).toList();
      List<Future<Integer>> running = tasks.stream().map(executor::submit).toList();
      assertTrue(using.await(60, TimeUnit.SECONDS));
      tokenizer.close();
      for (Future<Integer> task : running) {
        assertTrue(task.get() > 0);
      }
    }
  }

  @Test
  void loadingLeavesTheLibrarysSettingsAsTheyWere() {
    Fixtures.demoTokenizer().close();
    assertNull(System.getProperty("RUST_FLAVOR"));
    assertEquals("true", System.getProperty("OPT_OUT_TRACKING"));
  }

  @Test
  void endTokensComeFromBothConfigurations() throws IOException {
    copyTokenizer();
    Files.writeString(folder.resolve("tokenizer_config.json"),
        "{\"added_tokens_decoder\": {\"0\": {}}, \"x\": NaN, \"eos_token\": {\"lstrip\": false, \"content\": \"<|endoftext|>\"}}");
    Files.writeString(folder.resolve("generation_config.json"), "{\"eos_token_id\": [5, 7], \"temperature\": 0.5}");
    try (Tokenizer tokenizer = Tokenizer.load(folder)) {
      assertEquals(Set.of(0, 5, 7), tokenizer.endTokens());
    }
    Files.writeString(folder.resolve("tokenizer_config.json"), "{\"eos_token\": \"<unknown>\"}");
    Files.writeString(folder.resolve("generation_config.json"), "{\"eos_token_id\": 9}");
    try (Tokenizer tokenizer = Tokenizer.load(folder)) {
      assertEquals(Set.of(9), tokenizer.endTokens());
    }
    Files.writeString(folder.resolve("tokenizer_config.json"), "{\"eos_token\": null}");
    Files.writeString(folder.resolve("generation_config.json"), "{\"eos_token_id\": null}");
    try (Tokenizer tokenizer = Tokenizer.load(folder)) {
      assertEquals(Set.of(), tokenizer.endTokens());
    }
    for (String none : List.of("[]", "[], \"max_length\": 20, \"x\": [1]")) {
      Files.writeString(folder.resolve("generation_config.json"), "{\"eos_token_id\": " + none + "}");
      try (Tokenizer tokenizer = Tokenizer.load(folder)) {
        assertEquals(Set.of(), tokenizer.endTokens());
      }
    }
    Files.writeString(folder.resolve("generation_config.json"), "{\"eos_token_id\": [1,");
    IOException e = assertThrows(IOException.class, () -> Tokenizer.load(folder));
    assertTrue(e.getMessage().contains("generation_config.json"), e.getMessage());
  }

  private void copyTokenizer() throws IOException {
    Files.copy(Fixtures.DEMO_MODEL.resolve("tokenizer.json"), folder.resolve("tokenizer.json"));
  }

  @Test
  void aMissingTokenizerIsNamed() throws IOException {
    assertFalse(Tokenizer.isPresent(folder));
    IOException e = assertThrows(IOException.class, () -> Tokenizer.load(folder));
    assertTrue(e.getMessage().contains("tokenizer.json is missing"), e.getMessage());
  }

  /** The last six would end the JVM if they reached the tokenizer library. */
  static Stream<String> hostileFiles() {
    String model = "\"model\": {\"type\": \"WordLevel\", \"vocab\": {\"[UNK]\": 0}, \"unk_token\": \"[UNK]\"}";
    return Stream.of(
        "",
        "[]",
        "{",
        "{\"model\": {}}",
        "{\"model\": {\"vocab\": {\"a\": -1}}}",
        "{\"model\": {\"vocab\": {\"a\": 1e30}}}",
        "{\"model\": {\"vocab\": {\"a\": 2147483648}}}",
        "{\"model\": {\"vocab\": {\"a\": \"b\"}}}",
        "{\"model\": {\"type\": \"Surprise\", \"vocab\": {\"a\": 0}}}",
        "{\"added_tokens\": [{\"special\": true}], " + model + "}",
        "[".repeat(100_000),
        "{\"x\": " + "[".repeat(100_000),
        template("{\"SpecialToken\": {\"id\": \"x\", \"type_id\": 0}}") + model + "}",
        template("{\"Sequence\": {\"id\": \"B\", \"type_id\": 0}}") + model + "}",
        "{\"decoder\": {\"type\": \"Strip\", \"content\": \"a\", \"start\": 0, \"stop\": 9}, " + model + "}",
        "{\"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": \"BAAAAP///38AAAAA\"}, " + model + "}",
        "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"FixedLength\", \"length\": 0}]}, "
            + model + "}",
        "{\"model\": {\"type\": \"BPE\", \"continuing_subword_prefix\": \"##\", "
            + "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]}}");
  }

  private static String template(String piece) {
    return "{\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [" + piece
        + "], \"pair\": [], \"special_tokens\": {}}, ";
  }

  @Test
  void textsTheVocabularyHasNoTokenForAreRefused() throws IOException {
    Files.writeString(folder.resolve("tokenizer.json"),
        "{\"version\": \"1.0\", \"model\": {\"type\": \"WordLevel\", \"vocab\": {\"a\": 0}, \"unk_token\": \"?\"}}");
    try (Tokenizer tokenizer = Tokenizer.load(folder)) {
      assertArrayEquals(new int[] {0}, tokenizer.encode("a"));
      var e = assertThrows(IllegalArgumentException.class, () -> tokenizer.encode("b"));
      assertTrue(e.getMessage().contains("cannot process"), e.getMessage());
    }
  }

  @ParameterizedTest
  @MethodSource("hostileFiles")
  void hostileFilesAreRefusedByName(String json) throws IOException {
    Path file = Files.writeString(folder.resolve("tokenizer.json"), json);
    IOException e = assertThrows(IOException.class, () -> Tokenizer.load(folder));
    assertTrue(e.getMessage().contains(file.toString()), e.getMessage());
  }
}
