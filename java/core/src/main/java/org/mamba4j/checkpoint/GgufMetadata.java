package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.mismatch;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
import java.util.OptionalDouble;
import java.util.OptionalLong;
import java.util.Set;

/**
 * The metadata of a {@link GgufFile}: typed values by name. Values stay in the file until they are asked for; a value
 * of another type than asked for is a {@link CheckpointException} that names it.
 */
public final class GgufMetadata {
  private static final int MAX_KEY = 65_535; // as the format says
  private static final int MAX_KEY_BYTES = 64 << 20; // all together
  private static final int MAX_TEXT = 16 << 20;
  private static final int MAX_ELEMENTS = 1 << 22;

  /** In the order of their codes; {@code width} is 0 where it varies. */
  enum Type {
    UINT8(1),
    INT8(1),
    UINT16(2),
    INT16(2),
    UINT32(4),
    INT32(4),
    FLOAT32(4),
    BOOL(1),
    STRING(0),
    ARRAY(0),
    UINT64(8),
    INT64(8),
    FLOAT64(8);

    private final int width;

    Type(int width) {
      this.width = width;
    }

    static Type read(GgufReader reader, String what) throws CheckpointException {
      long code = reader.u32("type of " + what);
      if (code >= values().length) {
        throw mismatch(reader.path(), "type of " + what, "0 to " + (values().length - 1), code);
      }
      return values()[(int) code];
    }
  }

  /** {@code element} and {@code count} are those of an array; {@code at} is where the value or first element lies. */
  private record Value(Type type, Type element, long count, long at) {}

  private final GgufReader file;
  private final LinkedHashMap<String, Value> values = new LinkedHashMap<>();

  private GgufMetadata(GgufReader file) {
    this.file = file;
  }

  /** Checks {@code count} pairs and leaves the reader behind them. */
  static GgufMetadata read(GgufReader reader, long count) throws CheckpointException {
    var metadata = new GgufMetadata(reader.at(0));
    long keyBytes = 0;
    for (long i = 0; i < count; i++) {
      long begin = reader.position();
      String key = reader.text("metadata key " + i, MAX_KEY);
      keyBytes += reader.position() - begin;
      if (keyBytes > MAX_KEY_BYTES) {
        throw mismatch(reader.path(), "metadata keys", "at most " + MAX_KEY_BYTES + " bytes", "more");
      }
      if (metadata.values.put(key, value(reader, "metadata " + quote(key))) != null) {
        throw mismatch(reader.path(), "metadata " + quote(key), "once", "it twice");
      }
    }
    return metadata;
  }

  private static Value value(GgufReader reader, String what) throws CheckpointException {
    Type type = Type.read(reader, what);
    if (type != Type.ARRAY) {
      long at = reader.position();
      skip(reader, what, type, 1);
      return new Value(type, null, 0, at);
    }
    Type element = Type.read(reader, "elements of " + what);
    if (element == Type.ARRAY) {
      throw mismatch(reader.path(), what, "an array of plain values", "an array of arrays");
    }
    long count = reader.natural("element count of " + what, 0, Long.MAX_VALUE);
    long at = reader.position();
    skip(reader, what, element, count);
    return new Value(type, element, count, at);
  }

  private static void skip(GgufReader reader, String what, Type type, long count) throws CheckpointException {
    if (type.width > 0) {
      reader.skip(what, count, type.width);
      return;
    }
    for (long i = 0; i < count; i++) {
      reader.skipText(what);
    }
  }

  /** Names of the values in the order of the file. */
  public Set<String> keys() {
    return Collections.unmodifiableSet(values.sequencedKeySet());
  }

  /** An integer of any width, empty when there is no such key. */
  public OptionalLong integer(String key) throws CheckpointException {
    Value value = values.get(key);
    return value == null ? OptionalLong.empty() : OptionalLong.of(integer(file.at(value.at), key, value.type));
  }

  /** A floating-point number, empty when there is no such key. */
  public OptionalDouble number(String key) throws CheckpointException {
    Value value = values.get(key);
    if (value == null) {
      return OptionalDouble.empty();
    }
    return switch (value.type) {
      case FLOAT32 -> OptionalDouble.of(Float.intBitsToFloat(file.at(value.at).i32(key)));
      case FLOAT64 -> OptionalDouble.of(Double.longBitsToDouble(file.at(value.at).i64(key)));
      default -> throw wrong(key, "a floating-point number", describe(value));
    };
  }

  /** A truth value, empty when there is no such key. */
  public Optional<Boolean> flag(String key) throws CheckpointException {
    Value value = values.get(key);
    if (value == null) {
      return Optional.empty();
    }
    byte found = value.type == Type.BOOL ? file.at(value.at).i8(key) : -1;
    if (found != 0 && found != 1) {
      throw wrong(key, "true (1) or false (0)", value.type == Type.BOOL ? found : describe(value));
    }
    return Optional.of(found == 1);
  }

  /** A text of at most 16 MiB, empty when there is no such key. */
  public Optional<String> text(String key) throws CheckpointException {
    Value value = values.get(key);
    if (value == null) {
      return Optional.empty();
    }
    if (value.type != Type.STRING) {
      throw wrong(key, "a string", describe(value));
    }
    return Optional.of(file.at(value.at).text("metadata " + quote(key), MAX_TEXT));
  }

  /** An array of texts, empty when there is no such key. */
  public Optional<List<String>> texts(String key) throws CheckpointException {
    Value value = values.get(key);
    if (value == null) {
      return Optional.empty();
    }
    checkArray(key, value, "strings", value.element == Type.STRING);
    var texts = new ArrayList<String>();
    GgufReader reader = file.at(value.at);
    for (long i = 0; i < value.count; i++) {
      texts.add(reader.text("metadata " + quote(key), MAX_TEXT));
    }
    return Optional.of(texts);
  }

  /** An array of integers of any width, empty when there is no such key. */
  public Optional<long[]> integers(String key) throws CheckpointException {
    Value value = values.get(key);
    if (value == null) {
      return Optional.empty();
    }
    checkArray(key, value, "integers", value.element != Type.STRING);
    var integers = new long[(int) value.count];
    GgufReader reader = file.at(value.at);
    for (int i = 0; i < integers.length; i++) {
      integers[i] = integer(reader, key, value.element);
    }
    return Optional.of(integers);
  }

  private void checkArray(String key, Value value, String of, boolean ofThese) throws CheckpointException {
    if (value.type != Type.ARRAY || !ofThese || value.count > MAX_ELEMENTS) {
      throw wrong(key, "an array of at most " + MAX_ELEMENTS + " " + of, describe(value));
    }
  }

  private long integer(GgufReader reader, String key, Type type) throws CheckpointException {
    return switch (type) {
      case UINT8 -> Byte.toUnsignedLong(reader.i8(key));
      case INT8 -> reader.i8(key);
      case UINT16 -> Short.toUnsignedLong(reader.i16(key));
      case INT16 -> reader.i16(key);
      case UINT32 -> reader.u32(key);
      case INT32 -> reader.i32(key);
      case UINT64 -> reader.natural("metadata " + quote(key), 0, Long.MAX_VALUE);
      case INT64 -> reader.i64(key);
      case FLOAT32, BOOL, STRING, ARRAY, FLOAT64 -> throw wrong(key, "an integer", type);
    };
  }

  private static String describe(Value value) {
    return value.type == Type.ARRAY ? "an array of %d %s".formatted(value.count, value.element) : value.type.name();
  }

  CheckpointException wrong(String key, Object expected, Object found) {
    return mismatch(file.path(), "metadata " + quote(key), expected, found);
  }
}
