package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.checkpoint.Goldens.assertRefused;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

class SafetensorsFileTest {
  @TempDir Path folder;

  private Path write(String header, int dataBytes) throws IOException {
    byte[] json = Goldens.utf8(header);
    return write(json.length, json, dataBytes);
  }

  private Path write(long statedLength, byte[] header, int dataBytes) throws IOException {
    ByteBuffer bytes = ByteBuffer.allocate(8 + header.length + dataBytes).order(ByteOrder.LITTLE_ENDIAN);
    bytes.putLong(statedLength).put(header);
    Path path = folder.resolve("weights.safetensors");
    Files.write(path, bytes.array());
    return path;
  }

  private void assertHeaderRefused(String header, int dataBytes, String... parts) throws IOException {
    Path path = write(header, dataBytes);
    assertRefused(() -> SafetensorsFile.open(path), parts);
    assertRefused(() -> SafetensorsFile.open(path), "weights.safetensors");
  }

  private static String tensor(String dtype, String shape, String offsets) {
    return "{\"w\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
  }

  @Test
  void readsWhatIsThere() throws IOException {
    String header =
        """
        {"__metadata__":{"format":"pt"},
         "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
         "none":{"dtype":"F32","shape":[3,0],"data_offsets":[16,16]},
         "b":{"data_offsets":[16,19],"shape":[3],"dtype":"U8"}}   \
        """;
    Path path = write(header, 19);
    try (var file = SafetensorsFile.open(path)) {
      assertEquals(path, file.path());
      assertEquals("[a, none, b]", file.names().toString());
      assertEquals(Map.of("format", "pt"), file.metadata());
      assertArrayEquals(new long[] {2, 2}, file.tensor("a").shape());
      assertEquals(DType.U8, file.tensor("b").dtype());
      assertEquals(0, file.tensor("none").size());
      assertTrue(file.tensor("a").segment().isReadOnly());
      assertRefused(() -> file.tensor("c"), "weights.safetensors", "'c'", "no tensor of this name");
    }
  }

  @Test
  void closedFilesThrow() throws IOException {
    var file = SafetensorsFile.open(write(tensor("F32", "[1]", "[0,4]"), 4));
    Tensor tensor = file.tensor("w");
    file.close();
    file.close();
    assertThrows(IllegalStateException.class, () -> tensor.getFloat(0));
  }

  @ParameterizedTest
  @ValueSource(ints = {0, 1, 7, 8, 9, 100, 4000, 4199, 4200, 100_000})
  void truncated(int length) throws IOException {
    byte[] golden = Files.readAllBytes(Goldens.folder("mamba1-tied").resolve("model.safetensors"));
    Path path = folder.resolve("model.safetensors");
    Files.write(path, Arrays.copyOf(golden, length));
    assertRefused(() -> SafetensorsFile.open(path), "model.safetensors", "expected", "found");
  }

  @ParameterizedTest
  @ValueSource(longs = {100, 100_000_000, 100_000_001, Long.MAX_VALUE, -1, Long.MIN_VALUE})
  void oversizedHeader(long length) throws IOException {
    Path path = write(length, Goldens.utf8("{}"), 0);
    assertRefused(() -> SafetensorsFile.open(path), "weights.safetensors", "expected a header of", "found");
  }

  @Test
  void overlapping() throws IOException {
    assertHeaderRefused(
        """
        {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}""",
        12,
        "tensor 'b'", "overlaps tensor 'a'");
    assertHeaderRefused(
        """
        {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""",
        8,
        "overlaps");
  }

  @Test
  void holesAndTrailingBytes() throws IOException {
    assertHeaderRefused(
        """
        {"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}""",
        5,
        "tensor 'b'", "expected data at 2", "hole up to 3");
    assertHeaderRefused(tensor("U8", "[1]", "[1,2]"), 2, "hole");
    assertHeaderRefused(tensor("U8", "[1]", "[0,1]"), 2, "expected 1 bytes", "found 2");
    assertHeaderRefused("{}", 1, "expected 0 bytes", "found 1");
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "[0,9]|within the file's 8 bytes",
        "[8,16]|within the file's 8 bytes",
        "[4,9223372036854775807]|within the file's 8 bytes",
        "[8,0]|begin <= end",
        "[0]|begin <= end",
        "[]|begin <= end",
        "[0,4,8]|at most 2 numbers",
        "[-8,0]|integers from 0",
        "[0,1e1]|integers from 0",
        "[0,18446744073709551616]|integers from 0",
        "[0,null]|integers from 0",
        "8|as an array",
      })
  void outOfRange(String offsets, String expected) throws IOException {
    assertHeaderRefused(tensor("F32", "[2]", offsets), 8, "tensor 'w'", expected, "found");
  }

  @ParameterizedTest
  @ValueSource(strings = {"F31", "f32", "", "F8_E4M3", "U64", "C64"})
  void wrongDtype(String dtype) throws IOException {
    assertHeaderRefused(
        tensor(dtype, "[2]", "[0,8]"), 8, "tensor 'w'", "[F64, F32, F16, BF16, ", "found dtype '" + dtype + "'");
  }

  @Test
  void dtypeThatDoesNotFitItsBytes() throws IOException {
    assertHeaderRefused(tensor("F16", "[2]", "[0,8]"), 8, "tensor 'w'", "expected 4 bytes for F16 [2]", "found 8");
    assertHeaderRefused(tensor("F32", "[3]", "[0,8]"), 8, "tensor 'w'", "expected 12 bytes");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "[NaN]", "[Infinity]", "[-Infinity]", "[2.0]", "[-2]", "[1e2]", "[\"2\"]", "[null]", "[[2]]", "{}", "2",
        "[99999999999999999999]", "[9223372036854775807,2]", "[4294967296,4294967296]",
        "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]"
      })
  void nanAndOtherImpossibleShapes(String shape) throws IOException {
    assertHeaderRefused(tensor("F32", shape, "[0,8]"), 8, "tensor 'w'", "expected", "shape", "found");
  }

  @Test
  void duplicateNames() throws IOException {
    String one = "\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}";
    assertHeaderRefused("{" + one + "," + one + "}", 1, "Duplicate", "w");
    assertHeaderRefused(
        "{\"w\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "Duplicate", "dtype");
    assertHeaderRefused("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "Duplicate");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "", " ", "[]", "1", "null", "{", "{\"w\"", "{\"w\":}", "{}{}", "{} x", "{\"w\":1}", "{\"w\":{}}", "{\"w\":[]}",
        "{\"w\":{\"dtype\":\"U8\",\"shape\":[0]}}", "{\"w\":{\"dtype\":1,\"shape\":[0],\"data_offsets\":[0,0]}}",
        "{\"w\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"extra\":1}}",
        "{\"__metadata__\":1}", "{\"__metadata__\":{\"a\":1}}", "{\"__metadata__\":{\"a\":null}}"
      })
  void headersThatAreNoHeaders(String header) throws IOException {
    assertHeaderRefused(header, 0);
  }

  @Test
  void headersThatAreNoUtf8() throws IOException {
    Path path = write(4, new byte[] {'{', '"', (byte) 0xff, '"'}, 0);
    assertRefused(() -> SafetensorsFile.open(path), "not valid UTF-8");
    Path utf16 = write(4, new byte[] {'{', 0, '}', 0}, 0);
    assertRefused(() -> SafetensorsFile.open(utf16), "not valid JSON");
  }

  @Test
  void deepNestingIsRefusedNotRecursedInto() throws IOException {
    assertHeaderRefused("{\"w\":" + "[".repeat(100_000), 0, "expected an object");
    assertHeaderRefused(tensor("F32", "[".repeat(100_000), "[0,0]"), 0, "integers from 0");
  }

  @Test
  void unreadableFiles() throws IOException {
    assertRefused(() -> SafetensorsFile.open(folder.resolve("absent.safetensors")), "absent.safetensors", "no such");
    assertRefused(() -> SafetensorsFile.open(folder), folder.toString(), "found a folder");
    Path dangling = Files.createSymbolicLink(folder.resolve("link.safetensors"), folder.resolve("gone"));
    assertRefused(() -> SafetensorsFile.open(dangling), "link.safetensors", "no such");
  }

  @Test
  void misalignedTensorsAreReadable() throws IOException {
    Path path = write(tensor("F32", "[2]", "[0,8]") + " ", 8);
    long header = Files.size(path) - 16;
    Path odd = header % 4 == 0 ? write(tensor("F32", "[2]", "[0,8]") + "  ", 8) : path;
    try (var file = SafetensorsFile.open(odd)) {
      assertFalse(file.tensor("w").isAligned());
      assertArrayEquals(new float[2], file.tensor("w").toFloatArray());
    }
  }
}
