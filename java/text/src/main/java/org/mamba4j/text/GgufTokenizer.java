package org.mamba4j.text;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import org.mamba4j.checkpoint.GgufFile;
import org.mamba4j.checkpoint.GgufMetadata;

/**
 * The vocabulary inside of a GGUF file as a {@code tokenizer.json}: byte-level BPE with the splits of GPT-2, which is
 * what Mamba's, Mamba-2's and GPT-NeoX's tokenizers do.
 */
final class GgufTokenizer {
  private static final String PREFIX = "tokenizer.ggml.";
  private static final Set<String> SPLITS = Set.of("gpt-2", "mpt", "olmo", "jais"); // names of the same expression
  private static final int CONTROL = 3; // token types of llama.cpp
  private static final int USER_DEFINED = 4;
  private static final int UNUSED = 5;
  private static final JsonFactory JSON = new JsonFactory();

  private GgufTokenizer() {}

  /** Why there is no tokenizer to be had from a model's GGUF file, empty where there is one. */
  static Optional<String> missing(Path model) throws IOException {
    Optional<Path> path = GgufFile.find(model);
    if (path.isEmpty()) {
      return Optional.of("there is no GGUF file");
    }
    try (GgufFile file = GgufFile.open(path.get())) {
      return missing(file.metadata());
    }
  }

  private static Optional<String> missing(GgufMetadata metadata) throws IOException {
    String kind = metadata.text(PREFIX + "model").orElse("none");
    String splits = metadata.text(PREFIX + "pre").orElse("none");
    if (!kind.equals("gpt2") || !SPLITS.contains(splits)) {
      return Optional.of(
          "its vocabulary is of model '%s' with pre-tokenizer '%s', expected gpt2 with one of %s"
              .formatted(kind, splits, SPLITS.stream().sorted().toList()));
    }
    if (metadata.flag(PREFIX + "add_eos_token").orElse(false)) {
      return Optional.of("it asks for an end token behind every text");
    }
    return Optional.empty();
  }

  /** The tokenizer.json of a GGUF file's vocabulary. */
  static byte[] json(Path path) throws IOException {
    try (GgufFile file = GgufFile.open(path)) {
      GgufMetadata metadata = file.metadata();
      Optional<String> missing = missing(metadata);
      if (missing.isPresent()) {
        throw new IOException(path + ": no tokenizer: " + missing.get());
      }
      List<String> tokens = metadata.texts(PREFIX + "tokens").orElse(List.of());
      List<String> merges = metadata.texts(PREFIX + "merges").orElse(List.of());
      long[] types = metadata.integers(PREFIX + "token_type").orElse(new long[tokens.size()]);
      if (tokens.isEmpty() || types.length != tokens.size()) {
        throw new IOException(
            "%s: metadata '%stoken_type': expected the types of %d tokens, from 1, found %d"
                .formatted(path, PREFIX, tokens.size(), types.length));
      }
      if (new HashSet<>(tokens).size() != tokens.size()) {
        throw new IOException(path + ": metadata '" + PREFIX + "tokens': expected every token once, found one twice");
      }
      return write(tokens, types, merges, firstToken(path, metadata, tokens));
    }
  }

  /** The token that begins every text, -1 for none. */
  private static int firstToken(Path path, GgufMetadata metadata, List<String> tokens) throws IOException {
    if (!metadata.flag(PREFIX + "add_bos_token").orElse(false)) {
      return -1;
    }
    long id = metadata.integer(PREFIX + "bos_token_id").orElse(-1);
    if (id < 0 || id >= tokens.size()) {
      throw new IOException(
          "%s: metadata '%sbos_token_id': expected 0 to %d, found %d".formatted(path, PREFIX, tokens.size() - 1, id));
    }
    return (int) id;
  }

  private static byte[] write(List<String> tokens, long[] types, List<String> merges, int first) throws IOException {
    var bytes = new ByteArrayOutputStream();
    try (JsonGenerator json = JSON.createGenerator(bytes)) {
      json.writeStartObject();
      json.writeStringField("version", "1.0");
      json.writeArrayFieldStart("added_tokens");
      for (int id = 0; id < types.length; id++) {
        if (types[id] == CONTROL || types[id] == USER_DEFINED || id == first) {
          writeAdded(json, id, tokens.get(id), types[id] != USER_DEFINED);
        }
      }
      json.writeEndArray();
      writeByteLevel(json, "pre_tokenizer");
      writeByteLevel(json, "decoder");
      if (first >= 0) {
        writeTemplate(json, first, tokens.get(first));
      }
      json.writeObjectFieldStart("model");
      json.writeStringField("type", "BPE");
      json.writeObjectFieldStart("vocab");
      for (int id = 0; id < types.length; id++) {
        if (types[id] != UNUSED) {
          json.writeNumberField(tokens.get(id), id);
        }
      }
      json.writeEndObject();
      json.writeArrayFieldStart("merges");
      for (String merge : merges) {
        json.writeString(merge);
      }
      json.writeEndArray();
      json.writeEndObject();
      json.writeEndObject();
    }
    return bytes.toByteArray();
  }

  private static void writeAdded(JsonGenerator json, int id, String content, boolean special) throws IOException {
    json.writeStartObject();
    json.writeNumberField("id", id);
    json.writeStringField("content", content);
    for (String flag : List.of("single_word", "lstrip", "rstrip", "normalized")) {
      json.writeBooleanField(flag, false);
    }
    json.writeBooleanField("special", special);
    json.writeEndObject();
  }

  private static void writeByteLevel(JsonGenerator json, String field) throws IOException {
    json.writeObjectFieldStart(field);
    json.writeStringField("type", "ByteLevel");
    json.writeBooleanField("add_prefix_space", false);
    json.writeBooleanField("trim_offsets", false);
    json.writeBooleanField("use_regex", true);
    json.writeEndObject();
  }

  private static void writeTemplate(JsonGenerator json, int id, String content) throws IOException {
    json.writeObjectFieldStart("post_processor");
    json.writeStringField("type", "TemplateProcessing");
    json.writeArrayFieldStart("single");
    writePiece(json, "SpecialToken", content);
    writePiece(json, "Sequence", "A");
    json.writeEndArray();
    json.writeArrayFieldStart("pair");
    writePiece(json, "Sequence", "A");
    writePiece(json, "Sequence", "B");
    json.writeEndArray();
    json.writeObjectFieldStart("special_tokens");
    json.writeObjectFieldStart(content);
    json.writeStringField("id", content);
    json.writeFieldName("ids");
    json.writeArray(new int[] {id}, 0, 1);
    json.writeFieldName("tokens");
    json.writeArray(new String[] {content}, 0, 1);
    json.writeEndObject();
    json.writeEndObject();
    json.writeEndObject();
  }

  private static void writePiece(JsonGenerator json, String kind, String id) throws IOException {
    json.writeStartObject();
    json.writeObjectFieldStart(kind);
    json.writeStringField("id", id);
    json.writeNumberField("type_id", 0);
    json.writeEndObject();
    json.writeEndObject();
  }
}
