package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonParser.NumberType;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.SequencedMap;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

/**
 * The JSON header of a safetensors file: {@code {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}}
 * with an optional {@code "__metadata__"} of strings. Offsets count from the end of the header; the tensors must cover
 * the data exactly, without overlaps and without holes.
 */
record SafetensorsHeader(SequencedMap<String, Entry> entries, Map<String, String> metadata) {
  static final String METADATA = "__metadata__";
  static final int MAX_TENSORS = 100_000;

  /** A tensor's type, shape and bytes begin (inclusive) to end (exclusive) of the data. */
  record Entry(DType dtype, long[] shape, long begin, long end) {}

  static SafetensorsHeader parse(Path file, byte[] json, long dataLength) throws IOException {
    var entries = new LinkedHashMap<String, Entry>();
    var metadata = new LinkedHashMap<String, String>();
    Json.read(
        file,
        "the header",
        json,
        parser -> {
          while (parser.nextToken() != JsonToken.END_OBJECT) {
            String name = parser.currentName();
            parser.nextToken();
            if (name.equals(METADATA)) {
              readMetadata(file, parser, metadata);
            } else if (entries.size() == MAX_TENSORS) {
              throw in(file, "expected at most " + MAX_TENSORS + " tensors, found more");
            } else {
              entries.put(name, new EntryReader(file, name, parser).read(dataLength));
            }
          }
          return null;
        });
    checkLayout(file, entries, dataLength);
    return new SafetensorsHeader(entries, metadata);
  }

  private static void readMetadata(Path file, JsonParser parser, Map<String, String> out) throws IOException {
    if (parser.currentToken() != JsonToken.START_OBJECT) {
      throw in(file, METADATA + ": expected an object, found " + Json.describe(parser));
    }
    while (parser.nextToken() != JsonToken.END_OBJECT) {
      String key = parser.currentName();
      if (parser.nextToken() != JsonToken.VALUE_STRING) {
        throw in(file, METADATA + ": expected a string for " + quote(key) + ", found " + Json.describe(parser));
      }
      out.put(key, parser.getText());
    }
  }

  private static void checkLayout(Path file, Map<String, Entry> entries, long dataLength) throws CheckpointException {
    var inOrder = entries.entrySet().stream()
        .sorted(Map.Entry.comparingByValue(Comparator.comparingLong(Entry::begin).thenComparingLong(Entry::end)))
        .toList();
    long end = 0;
    String previous = null;
    for (var e : inOrder) {
      long begin = e.getValue().begin();
      if (begin < end) {
        throw CheckpointException.tensor(
            file, e.getKey(), "data of its own", "data at " + begin + " that overlaps tensor " + quote(previous));
      }
      if (begin > end) {
        throw CheckpointException.tensor(file, e.getKey(), "data at " + end, "a hole up to " + begin);
      }
      end = e.getValue().end();
      previous = e.getKey();
    }
    if (end != dataLength) {
      throw CheckpointException.mismatch(file, "length of the data", end + " bytes as the header says", dataLength);
    }
  }

  /** Reads one tensor's description. */
  private record EntryReader(Path file, String name, JsonParser parser) {
    Entry read(long dataLength) throws IOException {
      if (parser.currentToken() != JsonToken.START_OBJECT) {
        throw wrong("an object", Json.describe(parser));
      }
      DType dtype = null;
      long[] shape = null;
      long[] offsets = null;
      while (parser.nextToken() != JsonToken.END_OBJECT) {
        String key = parser.currentName();
        parser.nextToken();
        switch (key) {
          case "dtype" -> dtype = dtype();
          case "shape" -> shape = naturals("shape", Tensor.MAX_RANK);
          case "data_offsets" -> offsets = naturals("data_offsets", 2);
          default -> throw wrong("dtype, shape and data_offsets", quote(key));
        }
      }
      if (dtype == null || shape == null || offsets == null) {
        String absent = dtype == null ? "dtype" : shape == null ? "shape" : "data_offsets";
        throw wrong("dtype, shape and data_offsets", "no " + absent);
      }
      if (offsets.length != 2 || offsets[0] > offsets[1]) {
        throw wrong("data_offsets [begin, end] with begin <= end", Arrays.toString(offsets));
      }
      if (offsets[1] > dataLength) {
        throw wrong("data_offsets within the file's " + dataLength + " bytes of data", Arrays.toString(offsets));
      }
      long bytes = byteLength(dtype, shape);
      if (offsets[1] - offsets[0] != bytes) {
        throw wrong(
            bytes + " bytes for " + dtype + " " + Arrays.toString(shape),
            offsets[1] - offsets[0] + " bytes at data_offsets " + Arrays.toString(offsets));
      }
      return new Entry(dtype, shape, offsets[0], offsets[1]);
    }

    private DType dtype() throws IOException {
      if (parser.currentToken() != JsonToken.VALUE_STRING) {
        throw wrong("a dtype among " + DType.safetensorsTypes(), Json.describe(parser));
      }
      String text = parser.getText();
      return DType.fromSafetensorsName(text)
          .orElseThrow(() -> wrong("a dtype among " + DType.safetensorsTypes(), "dtype " + quote(text)));
    }

    private long[] naturals(String key, int max) throws IOException {
      if (parser.currentToken() != JsonToken.START_ARRAY) {
        throw wrong(key + " as an array", Json.describe(parser));
      }
      var values = new long[max];
      int count = 0;
      while (parser.nextToken() != JsonToken.END_ARRAY) {
        if (count == max) {
          throw wrong(key + " of at most " + max + " numbers", "more");
        }
        if (parser.currentToken() != JsonToken.VALUE_NUMBER_INT
            || parser.getNumberType() == NumberType.BIG_INTEGER
            || parser.getLongValue() < 0) {
          throw wrong(key + " of integers from 0 to 2^63 - 1", Json.describe(parser));
        }
        values[count++] = parser.getLongValue();
      }
      return Arrays.copyOf(values, count);
    }

    private long byteLength(DType dtype, long[] shape) throws CheckpointException {
      try {
        long bytes = dtype.byteSize();
        for (long dim : shape) {
          bytes = Math.multiplyExact(bytes, dim);
        }
        return bytes;
      } catch (ArithmeticException e) {
        throw wrong("a shape below 2^63 bytes", Arrays.toString(shape));
      }
    }

    private CheckpointException wrong(String expected, String found) {
      return CheckpointException.tensor(file, name, expected, found);
    }
  }
}
