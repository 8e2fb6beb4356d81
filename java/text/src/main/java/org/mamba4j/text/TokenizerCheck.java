package org.mamba4j.text;

import java.io.IOException;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;

/**
 * Refuses what the tokenizer library (Hugging Face tokenizers 0.21) does not check itself: there it would panic, and a
 * panic ends the whole JVM.
 */
final class TokenizerCheck {
  private TokenizerCheck() {}

  private static final Set<String> SUPPORTED = Set.of(
      "Sequence",
      // normalizers
      "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Prepend", "Replace", "Strip", "StripAccents",
      // pre-tokenizers
      "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Split",
      "UnicodeScripts", "Whitespace", "WhitespaceSplit",
      // post-processors
      "BertProcessing", "RobertaProcessing", "TemplateProcessing",
      // decoders
      "BPEDecoder", "ByteFallback", "CTC", "Fuse", "WordPiece");

  private static final List<String> PARTS = List.of("normalizers", "pretokenizers", "processors", "decoders");

  /**
   * Checks a normalizer, pre_tokenizer, post_processor or decoder and the parts of a Sequence.
   *
   * @param where file and field, for messages
   */
  static void component(String where, Object component) throws IOException {
    if (!(component instanceof Map<?, ?> fields) || !SUPPORTED.contains(String.valueOf(fields.get("type")))) {
      Object found = component instanceof Map<?, ?> fields ? fields.get("type") : component;
      throw new IOException(where + ": type '" + found + "' is not supported; expected one of " + new TreeSet<>(SUPPORTED));
    }
    for (String key : PARTS) {
      if (fields.get(key) instanceof List<?> parts) {
        for (Object part : parts) {
          component(where + "." + key, part);
        }
      }
    }
    if (fields.get("type").equals("TemplateProcessing")) {
      template(where, fields);
    }
    // tokens shorter than a Strip decoder's "stop" would be indexed below zero
    if (fields.containsKey("stop") && !Integer.valueOf(0).equals(fields.get("stop"))) {
      throw new IOException(where + ": Strip with stop " + fields.get("stop") + " is not supported, expected 0");
    }
  }

  private static void template(String where, Map<?, ?> fields) throws IOException {
    Map<?, ?> known = fields.get("special_tokens") instanceof Map<?, ?> map ? map : Map.of();
    for (Map.Entry<?, ?> token : known.entrySet()) {
      boolean complete = token.getValue() instanceof Map<?, ?> entry
          && entry.get("ids") instanceof List<?> ids
          && entry.get("tokens") instanceof List<?> tokens
          && ids.size() == tokens.size();
      if (!complete) {
        throw new IOException(where + ": special token '" + token.getKey() + "' needs as many ids as tokens, found "
            + token.getValue());
      }
    }
    for (String template : List.of("single", "pair")) {
      if (fields.get(template) instanceof List<?> pieces) {
        for (Object piece : pieces) {
          piece(where + "." + template, template.equals("pair"), piece, known.keySet());
        }
      }
    }
  }

  private static void piece(String where, boolean pair, Object piece, Set<?> known) throws IOException {
    boolean valid = false;
    if (piece instanceof Map<?, ?> fields) {
      valid = fields.get("SpecialToken") instanceof Map<?, ?> token && known.contains(token.get("id"))
          || fields.get("Sequence") instanceof Map<?, ?> sequence
              && ("A".equals(sequence.get("id")) || pair && "B".equals(sequence.get("id")));
    }
    if (!valid) {
      throw new IOException(where + " holds " + piece
          + "; expected sequence A (or B of a pair), or a SpecialToken that special_tokens lists");
    }
  }
}
