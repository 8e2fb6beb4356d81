package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The demo model's vocabulary, moved into a GGUF file, gives the same tokens. */
class GgufTokenizerTest {
  private static final List<String> TEXTS = List.of(
      "", " ", "a", "The quick brown fox isn't 1234 jumping,  over\n\n\tthe lazy dog!", "grüße 日本語 🙂 \u0000 e\u0301",
      "<|endoftext|> in the middle<|endoftext|>",
      "   leading and trailing   ",
      "public static void main(String[] args)");

  private final Map<String, byte[]> metadata = new LinkedHashMap<>();

  @TempDir Path folder;

  @BeforeEach
  void demoVocabulary() throws IOException {
    Map<?, ?> model = (Map<?, ?>) JSON.std.mapFrom(Fixtures.DEMO_MODEL.resolve("tokenizer.json").toFile()).get("model");
    Map<?, ?> vocab = (Map<?, ?>) model.get("vocab");
    String[] tokens = new String[vocab.size()];
    vocab.forEach((token, id) -> tokens[(Integer) id] = (String) token);
    int[] types = new int[tokens.length];
    Arrays.fill(types, 1);
    types[0] = 3;
    var merges = new ArrayList<String>();
    for (Object merge : (List<?>) model.get("merges")) {
      merges.add(((List<?>) merge).get(0) + " " + ((List<?>) merge).get(1));
    }
    text("model", "gpt2");
    text("pre", "gpt-2");
    texts("tokens", List.of(tokens));
    types(types);
    texts("merges", merges);
    integer("bos_token_id", 0);
    flag("add_bos_token", true);
  }

  private void text(String key, String value) {
    metadata.put(key, concat(u32(8), string(value)));
  }

  private void texts(String key, List<String> values) {
    var out = new ByteArrayOutputStream();
    out.writeBytes(concat(u32(9), u32(8), u64(values.size())));
    values.forEach(value -> out.writeBytes(string(value)));
    metadata.put(key, out.toByteArray());
  }

  private void types(int... types) {
    ByteBuffer bytes = ByteBuffer.allocate(4 * types.length).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asIntBuffer().put(types);
    metadata.put("token_type", concat(u32(9), u32(5), u64(types.length), bytes.array()));
  }

  private void integer(String key, int value) {
    metadata.put(key, concat(u32(4), u32(value)));
  }

  private void flag(String key, boolean value) {
    metadata.put(key, concat(u32(7), new byte[] {(byte) (value ? 1 : 0)}));
  }

  private Path write() throws IOException {
    var out = new ByteArrayOutputStream();
    out.writeBytes(concat("GGUF".getBytes(StandardCharsets.US_ASCII), u32(3), u64(0), u64(metadata.size())));
    metadata.forEach((key, value) -> out.writeBytes(concat(string("tokenizer.ggml." + key), value)));
    return Files.write(folder.resolve("model.gguf"), out.toByteArray());
  }

  private static byte[] string(String text) {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    return concat(u64(bytes.length), bytes);
  }

  private static byte[] u32(int value) {
    return ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putInt(value).array();
  }

  private static byte[] u64(long value) {
    return ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(value).array();
  }

  private static byte[] concat(byte[]... parts) {
    var out = new ByteArrayOutputStream();
    for (byte[] part : parts) {
      out.writeBytes(part);
    }
    return out.toByteArray();
  }

  private void assertRefused(String... parts) throws IOException {
    Path path = write();
    String message = assertThrows(IOException.class, () -> Tokenizer.load(path)).getMessage();
    for (String part : parts) {
      assertTrue(message.contains(part), () -> part + " expected in: " + message);
    }
  }

  @Test
  void givesTheTokensOfTheTokenizerItWasMadeOf() throws IOException {
    Path path = write();
    assertTrue(Tokenizer.isPresent(path));
    assertTrue(Tokenizer.isPresent(folder));
    try (Tokenizer expected = Fixtures.demoTokenizer();
        Tokenizer found = Tokenizer.load(path);
        Tokenizer inFolder = Tokenizer.load(folder)) {
      assertEquals(expected.vocabSize(), found.vocabSize());
      assertEquals(Set.of(), found.endTokens());
      assertFalse(found.hasText(0));
      for (String text : TEXTS) {
        int[] ids = expected.encode(text);
        assertArrayEquals(ids, found.encode(text), text);
        assertArrayEquals(ids, inFolder.encode(text), text);
        assertArrayEquals(expected.encodeWithoutSpecialTokens(text), found.encodeWithoutSpecialTokens(text), text);
        assertEquals(expected.decode(ids), found.decode(ids));
      }
    }
    Files.writeString(folder.resolve("generation_config.json"), "{\"eos_token_id\": 7}");
    for (Path model : List.of(path, folder)) {
      try (Tokenizer found = Tokenizer.load(model)) {
        assertEquals(Set.of(7), found.endTokens());
      }
    }
  }

  @Test
  void withoutAFirstToken() throws IOException {
    flag("add_bos_token", false);
    try (Tokenizer tokenizer = Tokenizer.load(write())) {
      assertArrayEquals(tokenizer.encodeWithoutSpecialTokens("some text"), tokenizer.encode("some text"));
    }
  }

  @Test
  void userDefinedTokensHaveTextAndUnusedOnesNone() throws IOException {
    texts("tokens", List.of("<s>", "a", "b", "<tab>", "unused", "ab"));
    texts("merges", List.of("a b"));
    types(3, 1, 1, 4, 5, 1);
    flag("add_bos_token", false);
    try (Tokenizer tokenizer = Tokenizer.load(write())) {
      assertArrayEquals(new int[] {5, 3, 2, 1, 0}, tokenizer.encode("ab<tab>ba<s>"));
      assertEquals("ab<tab>ba", tokenizer.decode(5, 3, 2, 4, 1, 0));
      assertEquals(6, tokenizer.vocabSize());
    }
  }

  @Test
  void aTokenizerBesideTheFileGoesFirst() throws IOException {
    text("model", "llama");
    Path path = write();
    assertFalse(Tokenizer.isPresent(path));
    Files.copy(Fixtures.DEMO_MODEL.resolve("tokenizer.json"), folder.resolve("tokenizer.json"));
    assertTrue(Tokenizer.isPresent(path));
    try (Tokenizer expected = Fixtures.demoTokenizer();
        Tokenizer found = Tokenizer.load(path)) {
      assertArrayEquals(expected.encode("some text"), found.encode("some text"));
    }
  }

  @Test
  void saysWhatIsMissing() throws IOException {
    text("pre", "default");
    assertRefused("tokenizer.json is missing", "model 'gpt2' with pre-tokenizer 'default'");
    text("pre", "gpt-2");
    text("model", "llama");
    assertRefused("tokenizer.json is missing", "model 'llama'", "expected gpt2");
    metadata.remove("model");
    assertRefused("model 'none'");
    text("model", "gpt2");
    flag("add_eos_token", true);
    assertRefused("an end token behind every text");
  }

  @Test
  void damagedVocabulariesAreRefused() throws IOException {
    types(1, 1);
    assertRefused("model.gguf", "token_type", "found 2");
    metadata.remove("tokens");
    assertRefused("model.gguf", "token_type");
    texts("tokens", List.of("a", "a"));
    assertRefused("model.gguf", "every token once");
    texts("tokens", List.of("a", "b"));
    assertRefused("model.gguf", "is not a tokenizer that can be read"); // merges of other tokens
    texts("merges", List.of());
    integer("bos_token_id", 2);
    assertRefused("model.gguf", "bos_token_id", "0 to 1", "found 2");
  }
}
