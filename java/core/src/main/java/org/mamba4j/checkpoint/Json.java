package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonFactoryBuilder;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import com.fasterxml.jackson.jr.ob.JSON;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Map;

/** JSON from files that nobody vouches for: UTF-8, unique keys, bounded depth and lengths. */
final class Json {
  static final int MAX_BYTES = 100_000_000;

  // Python's json module writes bare Infinity and NaN; readers here decide where such a number makes sense.
  private static final JsonFactory FACTORY =
      new JsonFactoryBuilder()
          .streamReadConstraints(
              StreamReadConstraints.builder()
                  .maxNestingDepth(32)
                  .maxNumberLength(100)
                  .maxNameLength(10_000)
                  .maxStringLength(MAX_BYTES)
                  .maxDocumentLength(MAX_BYTES)
                  .build())
          .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
          .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS)
          .disable(JsonFactory.Feature.INTERN_FIELD_NAMES)
          .disable(JsonFactory.Feature.CANONICALIZE_FIELD_NAMES)
          .build();

  private static final JSON TREES = JSON.builder(FACTORY).build();

  private Json() {}

  /** Reads the value that the parser stands on. */
  @FunctionalInterface
  interface Body<T> {
    T read(JsonParser parser) throws IOException;
  }

  /** Hands {@code body} a parser at the beginning of the one object that {@code utf8} must hold. */
  static <T> T read(Path file, String what, byte[] utf8, Body<T> body) throws IOException {
    // A strict decoder: left to itself, the parser would also guess UTF-16 and UTF-32.
    Reader reader =
        new InputStreamReader(new ByteArrayInputStream(utf8), StandardCharsets.UTF_8.newDecoder());
    try (JsonParser parser = FACTORY.createParser(reader)) {
      if (parser.nextToken() != JsonToken.START_OBJECT) {
        throw in(file, what + ": expected a JSON object, found " + describe(parser));
      }
      T result = body.read(parser);
      if (parser.nextToken() != null) {
        throw in(file, what + ": expected the end behind the JSON object, found " + describe(parser));
      }
      return result;
    } catch (JsonProcessingException e) {
      String where = e.getLocation() == null ? "" : " at character " + e.getLocation().getCharOffset();
      throw new CheckpointException(
          file + ": " + what + " is not valid JSON" + where + ": " + oneLine(e.getOriginalMessage()), e);
    } catch (CharacterCodingException e) {
      throw new CheckpointException(file + ": " + what + " is not valid UTF-8", e);
    }
  }

  /** A whole object as maps, lists, strings, numbers, booleans and nulls. */
  static Map<String, Object> tree(Path file, String what, byte[] utf8) throws IOException {
    return read(file, what, utf8, TREES::mapFrom);
  }

  /** The value under the parser, for a message. */
  static String describe(JsonParser parser) throws IOException {
    JsonToken token = parser.currentToken();
    if (token == null) {
      return "nothing";
    }
    return switch (token) {
      case START_OBJECT -> "an object";
      case START_ARRAY -> "an array";
      case VALUE_STRING -> "the string " + CheckpointException.quote(parser.getText());
      default -> CheckpointException.quote(parser.getText());
    };
  }

  private static String oneLine(String text) {
    String quoted = CheckpointException.quote(text);
    return quoted.substring(1, quoted.length() - 1);
  }
}
