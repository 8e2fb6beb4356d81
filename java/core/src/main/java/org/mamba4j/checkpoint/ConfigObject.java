package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.mismatch;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** Typed access to an object of {@code config.json}. Absent and null are the same: not stated. */
final class ConfigObject {
  private final Path file;
  private final String prefix;
  private final Map<?, ?> values;

  ConfigObject(Path file, String prefix, Map<?, ?> values) {
    this.file = file;
    this.prefix = prefix;
    this.values = values;
  }

  Path file() {
    return file;
  }

  boolean has(String key) {
    return values.get(key) != null;
  }

  boolean is(String key, String text) {
    return text.equals(values.get(key));
  }

  /** A dimension that may have one of several names. */
  Stated dimension(String... keys) throws CheckpointException {
    Stated stated = Stated.nothing(prefix + keys[0]);
    for (String key : keys) {
      Object value = values.get(key);
      if (value == null) {
        continue;
      }
      if (!(value instanceof Integer || value instanceof Long) || ((Number) value).longValue() < 1) {
        throw wrong(key, "an integer from 1", value);
      }
      long number = ((Number) value).longValue();
      if (stated.isPresent() && stated.value() != number) {
        throw mismatch(file, prefix + key, number(stated), number);
      }
      stated = new Stated(prefix + key, number);
    }
    return stated;
  }

  private static String number(Stated stated) {
    return stated.value() + " as in " + stated.key();
  }

  /** A dimension of 0 or more. */
  long count(String key) throws CheckpointException {
    Object value = values.get(key);
    if (value == null) {
      return 0;
    }
    if (!(value instanceof Integer || value instanceof Long) || ((Number) value).longValue() < 0) {
      throw wrong(key, "an integer from 0", value);
    }
    return ((Number) value).longValue();
  }

  Optional<Boolean> flag(String key) throws CheckpointException {
    Object value = values.get(key);
    if (value != null && !(value instanceof Boolean)) {
      throw wrong(key, "true or false", value);
    }
    return Optional.ofNullable((Boolean) value);
  }

  Optional<String> text(String key) throws CheckpointException {
    Object value = values.get(key);
    if (value != null && !(value instanceof String)) {
      throw wrong(key, "a string", value);
    }
    return Optional.ofNullable((String) value);
  }

  /** A number, a bare Infinity, or {@code {"__float__": "Infinity"}}. */
  Optional<Double> number(String key) throws CheckpointException {
    Object value = values.get(key);
    return value == null ? Optional.empty() : Optional.of(toDouble(key, value));
  }

  /** A positive finite number that stays one as a float. */
  float epsilon(String key, float otherwise) throws CheckpointException {
    float value = number(key).map(Double::floatValue).orElse(otherwise);
    if (!(value > 0) || Float.isInfinite(value)) {
      throw wrong(key, "a positive number", values.get(key));
    }
    return value;
  }

  /** A pair [low, high] of numbers with 0 <= low <= high; high may be infinite. */
  Optional<float[]> range(String key) throws CheckpointException {
    Object value = values.get(key);
    if (value == null) {
      return Optional.empty();
    }
    if (!(value instanceof List<?> list) || list.size() != 2) {
      throw wrong(key, "[low, high]", value);
    }
    float low = (float) toDouble(key, list.get(0));
    float high = (float) toDouble(key, list.get(1));
    if (!(low >= 0 && low <= high) || Float.isInfinite(low)) {
      throw wrong(key, "[low, high] with 0 <= low <= high", value);
    }
    return Optional.of(new float[] {low, high});
  }

  /** A token id, a list of them, or none. */
  int[] tokenIds(String key) throws CheckpointException {
    Object value = values.get(key);
    var ids = new ArrayList<Integer>();
    for (Object id : value instanceof List<?> list ? list : value == null ? List.of() : List.of(value)) {
      if (!(id instanceof Integer number) || number < 0) {
        throw wrong(key, "token ids", value);
      }
      ids.add(number);
    }
    return ids.stream().mapToInt(Integer::intValue).toArray();
  }

  boolean isEmptyList(String key) throws CheckpointException {
    Object value = values.get(key);
    if (value != null && !(value instanceof List<?>)) {
      throw wrong(key, "a list", value);
    }
    return value == null || ((List<?>) value).isEmpty();
  }

  ConfigObject object(String key) throws CheckpointException {
    Object value = values.get(key);
    if (value != null && !(value instanceof Map<?, ?>)) {
      throw wrong(key, "an object", value);
    }
    return new ConfigObject(file, key + ".", value == null ? Map.of() : (Map<?, ?>) value);
  }

  CheckpointException wrong(String key, String expected, Object found) {
    return mismatch(file, prefix + key, expected, describe(found));
  }

  private double toDouble(String key, Object value) throws CheckpointException {
    if (value instanceof Map<?, ?> map && map.size() == 1 && map.get("__float__") instanceof String text) {
      switch (text) {
        case "Infinity" -> {
          return Double.POSITIVE_INFINITY;
        }
        case "-Infinity" -> {
          return Double.NEGATIVE_INFINITY;
        }
        case "NaN" -> {
          return Double.NaN;
        }
        default -> throw wrong(key, "Infinity, -Infinity or NaN as __float__", text);
      }
    }
    if (!(value instanceof Number number)) {
      throw wrong(key, "a number", value);
    }
    return number.doubleValue();
  }

  private static String describe(Object value) {
    return switch (value) {
      case null -> "nothing";
      case String text -> quote(text);
      case Map<?, ?> _ -> "an object";
      case List<?> list when list.size() > 4 || list.stream().anyMatch(e -> e instanceof List || e instanceof Map) ->
          "a list of " + list.size();
      case Object other -> {
        String quoted = quote(other.toString());
        yield quoted.substring(1, quoted.length() - 1);
      }
    };
  }

  /** What a configuration says about a dimension, if anything, and under which name. */
  record Stated(String key, long value) {
    static Stated nothing(String key) {
      return new Stated(key, 0);
    }

    boolean isPresent() {
      return value != 0;
    }
  }
}
