package org.mamba4j.text;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import com.fasterxml.jackson.jr.ob.JSON;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.BitSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;

/**
 * What the tokenizer library does not tell: size of the vocabulary, which tokens are special, which end a text. Read in
 * one pass, without keeping the vocabulary.
 *
 * @param vocabSize highest id + 1
 * @param special ids of tokens that are no text
 * @param endTokens ids that end a text, from tokenizer_config.json and generation_config.json
 */
record TokenizerFiles(int vocabSize, BitSet special, Set<Integer> endTokens) {
  static final String TOKENIZER = "tokenizer.json";
  private static final String TOKENIZER_CONFIG = "tokenizer_config.json";
  private static final String GENERATION_CONFIG = "generation_config.json";

  private static final Set<String> COMPONENTS = Set.of("normalizer", "pre_tokenizer", "post_processor", "decoder");
  private static final long MAX_BYTES = 256L << 20;
  private static final int MAX_ID = 1 << 26;
  private static final JsonFactory FACTORY = JsonFactory.builder()
      .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS)
      .streamReadConstraints(StreamReadConstraints.builder().maxNestingDepth(200).build())
      .build();

  /** A file of a model that is a folder or a file. */
  static Path of(Path model, String name) {
    return Files.isRegularFile(model) ? model.resolveSibling(name) : model.resolve(name);
  }

  /** Of a GGUF file whose vocabulary is {@code json}. */
  static TokenizerFiles read(Path gguf, byte[] json) throws IOException {
    Vocabulary vocabulary = new Vocabulary(gguf);
    parse(gguf, new ByteArrayInputStream(json), vocabulary::field);
    return new TokenizerFiles(vocabulary.highestId + 1, vocabulary.special, Set.copyOf(endTokens(gguf)));
  }

  /** Of a tokenizer.json and the files beside it. */
  static TokenizerFiles read(Path file) throws IOException {
    Vocabulary vocabulary = new Vocabulary(file);
    parse(file, vocabulary::field);
    if (vocabulary.highestId < 0) {
      throw new IOException(file + ": no vocabulary found; expected model.vocab");
    }
    Path folder = file.toAbsolutePath().getParent();
    Set<Integer> ends = endTokens(folder);
    Path config = folder.resolve(TOKENIZER_CONFIG);
    if (Files.isRegularFile(config)) {
      parse(config, (name, parser) -> {
        Integer id = name.equals("eos_token") ? vocabulary.added.get(tokenContent(parser)) : null;
        if (id != null) {
          ends.add(id);
        }
      });
    }
    return new TokenizerFiles(vocabulary.highestId + 1, vocabulary.special, Set.copyOf(ends));
  }

  /** eos_token_id of the model's generation_config.json: a number, a list of numbers, or absent. */
  static Set<Integer> endTokens(Path model) throws IOException {
    Set<Integer> ends = new HashSet<>();
    Path file = of(model, GENERATION_CONFIG);
    if (Files.isRegularFile(file)) {
      parse(file, (name, parser) -> {
        if (!name.equals("eos_token_id")) {
          return;
        }
        boolean list = parser.currentToken() == JsonToken.START_ARRAY;
        JsonToken token = list ? parser.nextToken() : parser.currentToken();
        while (token != null && token != JsonToken.END_ARRAY && ends.size() < 1000) {
          if (token == JsonToken.VALUE_NUMBER_INT) {
            ends.add(parser.getIntValue());
          }
          token = list ? parser.nextToken() : null;
        }
      });
    }
    return ends;
  }

  @FunctionalInterface
  private interface FieldReader {
    /** Reads the value the parser stands on; need not consume the rest of an object or array. */
    void read(String name, JsonParser parser) throws IOException;
  }

  private static void parse(Path file, FieldReader reader) throws IOException {
    long bytes = Files.size(file);
    if (bytes > MAX_BYTES) {
      throw new IOException(file + " has " + bytes + " bytes, expected at most " + MAX_BYTES);
    }
    try (InputStream in = Files.newInputStream(file)) {
      parse(file, in, reader);
    }
  }

  private static void parse(Path file, InputStream in, FieldReader reader) throws IOException {
    try (JsonParser parser = FACTORY.createParser(in)) {
      if (parser.nextToken() != JsonToken.START_OBJECT) {
        throw new IOException(file + ": expected a JSON object");
      }
      eachField(parser, reader);
    } catch (JsonProcessingException e) {
      String where = e.getLocation() == null ? "" : " at " + e.getLocation().offsetDescription();
      throw new IOException(file + " is not valid JSON: " + e.getOriginalMessage() + where, e);
    }
  }

  /** Calls {@code reader} for every field of the object the parser is in, then leaves the object. */
  private static void eachField(JsonParser parser, FieldReader reader) throws IOException {
    int depth = parser.getParsingContext().getNestingDepth();
    for (String name = parser.nextFieldName(); name != null; name = parser.nextFieldName()) {
      parser.nextToken();
      reader.read(name, parser);
      while (parser.getParsingContext().getNestingDepth() > depth) {
        if (parser.nextToken() == null) {
          return;
        }
      }
    }
  }

  /** A token given as "text" or {"content": "text"}. */
  private static String tokenContent(JsonParser parser) throws IOException {
    if (parser.currentToken() == JsonToken.VALUE_STRING) {
      return parser.getText();
    }
    String[] content = {null};
    if (parser.currentToken() == JsonToken.START_OBJECT) {
      eachField(parser, (name, p) -> content[0] = name.equals("content") ? p.getText() : content[0]);
    }
    return content[0];
  }

  private static final class Vocabulary {
    final Path file;
    final BitSet special = new BitSet();
    final Map<String, Integer> added = new HashMap<>();
    int highestId = -1;
    private boolean hasMerges;
    private boolean hasPrefix;

    Vocabulary(Path file) {
      this.file = file;
    }

    void field(String name, JsonParser parser) throws IOException {
      if (name.equals("added_tokens") && parser.currentToken() == JsonToken.START_ARRAY) {
        while (parser.nextToken() == JsonToken.START_OBJECT) {
          addedToken(parser);
        }
      } else if (COMPONENTS.contains(name) && parser.currentToken() != JsonToken.VALUE_NULL) {
        TokenizerCheck.component(file + ": " + name, JSON.std.anyFrom(parser));
      } else if (name.equals("model") && parser.currentToken() == JsonToken.START_OBJECT) {
        eachField(parser, (field, p) -> {
          switch (field) {
            case "vocab" -> vocab(p);
            case "merges" -> hasMerges = true;
            case "continuing_subword_prefix" -> hasPrefix = !p.getValueAsString("").isEmpty();
            default -> { }
          }
        });
        if (hasMerges && hasPrefix) { // the library would cut merges at its length, whether they have it or not
          throw new IOException(file + ": model.continuing_subword_prefix is not supported together with merges");
        }
      }
    }

    private void addedToken(JsonParser parser) throws IOException {
      int[] id = {-1};
      boolean[] isSpecial = {false};
      String[] content = {null};
      eachField(parser, (field, p) -> {
        switch (field) {
          case "id" -> id[0] = checkedId(p);
          case "special" -> isSpecial[0] = p.currentToken() == JsonToken.VALUE_TRUE;
          case "content" -> content[0] = p.getText();
          default -> { }
        }
      });
      if (id[0] < 0 || content[0] == null) {
        throw new IOException(file + ": an entry of added_tokens lacks its id or content");
      }
      added.put(content[0], id[0]);
      if (isSpecial[0]) {
        special.set(id[0]);
      }
    }

    /** BPE, WordPiece and WordLevel map tokens to ids; Unigram lists pairs of token and score. */
    private void vocab(JsonParser parser) throws IOException {
      if (parser.currentToken() == JsonToken.START_OBJECT) {
        eachField(parser, (_, p) -> checkedId(p));
      } else if (parser.currentToken() == JsonToken.START_ARRAY) {
        int count = 0;
        while (parser.nextToken() == JsonToken.START_ARRAY) {
          parser.skipChildren();
          count++;
        }
        highestId = Math.max(highestId, count - 1);
      }
    }

    private int checkedId(JsonParser parser) throws IOException {
      if (parser.currentToken() != JsonToken.VALUE_NUMBER_INT
          || parser.getLongValue() < 0
          || parser.getLongValue() >= MAX_ID) {
        throw new IOException(file + ": token id " + parser.getText() + ", expected 0 to " + (MAX_ID - 1));
      }
      int id = parser.getIntValue();
      highestId = Math.max(highestId, id);
      return id;
    }
  }
}
