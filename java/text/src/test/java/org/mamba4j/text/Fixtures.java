package org.mamba4j.text;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import org.mamba4j.Tensor;

/** Tokenizers and logits that several tests use. */
final class Fixtures {
  static final Path DEMO_MODEL = Path.of("../../tests/models/mamba2-java-9m");
  static final String DEMO_PROMPT = "public class Matrix {\n    private final double[] data;\n";
  static final int[] DEMO_PROMPT_IDS = {0, 873, 564, 510, 1795, 274, 271, 451, 372, 861, 546, 774, 27, 199};
  static final int[] DEMO_CONTINUATION = {
    335, 350, 510, 1795, 8, 2050, 546, 774, 9, 274, 279, 408, 14, 1479, 294, 774, 27, 271, 288, 335
  };

  private Fixtures() {}

  static Tokenizer demoTokenizer() {
    try {
      return Tokenizer.load(DEMO_MODEL);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** As SentencePiece models spell it: U+2581 for spaces, a space put in front of the text, bytes as a fallback. */
  static Tokenizer sentencePieceTokenizer(Path folder) throws IOException {
    StringBuilder vocab = new StringBuilder("\"<unk>\": 0, \"<s>\": 1, \"</s>\": 2");
    for (int b = 0; b < 256; b++) {
      vocab.append(", \"<0x%02X>\": %d".formatted(b, b + 3));
    }
    String[] pieces = {"\u2581", "H", "e", "l", "o", "w", "r", "d", "\u2581H", "\u2581w", "or"};
    for (int i = 0; i < pieces.length; i++) {
      vocab.append(", \"%s\": %d".formatted(pieces[i], 259 + i));
    }
    String json = """
        {"version": "1.0", "truncation": null, "padding": null,
         "added_tokens": [
           {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true}],
         "normalizer": {"type": "Sequence", "normalizers": [
           {"type": "Prepend", "prepend": "\u2581"},
           {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
         "pre_tokenizer": null,
         "post_processor": {"type": "TemplateProcessing",
           "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
         "decoder": {"type": "Sequence", "decoders": [
           {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
           {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
         "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
           "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": {%s},
           "merges": ["\u2581 H", "\u2581 w", "o r"]}}
        """.formatted(vocab);
    Files.writeString(folder.resolve("tokenizer.json"), json);
    return Tokenizer.load(folder);
  }

  static Tensor logits(float... values) {
    return Tensor.copyOf(Arena.ofAuto(), values, values.length);
  }
}
