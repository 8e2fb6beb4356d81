package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.checkpoint.GgufBuilder.ARRAY;
import static org.mamba4j.checkpoint.GgufBuilder.BOOL;
import static org.mamba4j.checkpoint.GgufBuilder.INT32;
import static org.mamba4j.checkpoint.GgufBuilder.STRING;
import static org.mamba4j.checkpoint.GgufBuilder.UINT32;
import static org.mamba4j.checkpoint.GgufBuilder.UINT64;
import static org.mamba4j.checkpoint.GgufBuilder.UINT8;
import static org.mamba4j.checkpoint.GgufBuilder.concat;
import static org.mamba4j.checkpoint.GgufBuilder.u32;
import static org.mamba4j.checkpoint.GgufBuilder.u64;
import static org.mamba4j.checkpoint.Goldens.assertRefused;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

class GgufFileTest {
  private static final Path PATH = Path.of("a.gguf");

  private final GgufBuilder builder = new GgufBuilder();

  private static GgufFile read(byte[] bytes) throws CheckpointException {
    return GgufFile.read(PATH, MemorySegment.ofArray(bytes), Arena.ofShared());
  }

  private void assertBuilderRefused(String... parts) {
    byte[] bytes = builder.build();
    assertRefused(() -> read(bytes), parts);
    assertRefused(() -> read(bytes), "a.gguf: ");
  }

  private GgufBuilder.Entry floats(String name, Long offset, long... shape) {
    long size = Arrays.stream(shape).reduce(1, (a, b) -> a * b);
    return new GgufBuilder.Entry(name, 0, shape, new byte[(int) size * 4], offset);
  }

  @ParameterizedTest
  @ValueSource(ints = {2, 3})
  void tensorsAndMetadata(int version, @TempDir Path folder) throws IOException {
    builder.version = version;
    builder
        .text("text", "grüße")
        .integer("integer", 4_000_000_000L)
        .number("number", 0.5f)
        .flag("flag", true)
        .texts("texts", List.of("a", "", "bc"))
        .put("bytes", ARRAY, concat(u32(UINT8), u64(3), new byte[] {1, 2, -1}))
        .put("big", UINT64, u64(1L << 62))
        .put("negative", INT32, u32(-5))
        .tensor("matrix", 0, GgufBuilder.encode(DType.F32, new float[] {1, 2, 3, 4, 5, 6}), 2, 3)
        .tensor("half", 1, GgufBuilder.encode(DType.F16, new float[] {1.5f, -2}), 2)
        .tensor("brain", 30, GgufBuilder.encode(DType.BF16, new float[] {1.5f, -2}), 1, 2);
    Path path = Files.write(folder.resolve("a.gguf"), builder.build());
    try (GgufFile file = GgufFile.open(path)) {
      GgufMetadata metadata = file.metadata();
      assertEquals("grüße", metadata.text("text").orElseThrow());
      assertEquals(4_000_000_000L, metadata.integer("integer").orElseThrow());
      assertEquals(0.5, metadata.number("number").orElseThrow());
      assertEquals(true, metadata.flag("flag").orElseThrow());
      assertEquals(List.of("a", "", "bc"), metadata.texts("texts").orElseThrow());
      assertArrayEquals(new long[] {1, 2, 255}, metadata.integers("bytes").orElseThrow());
      assertEquals(1L << 62, metadata.integer("big").orElseThrow());
      assertEquals(-5, metadata.integer("negative").orElseThrow());
      assertTrue(metadata.text("absent").isEmpty());
      assertEquals(8, metadata.keys().size());
      assertEquals(List.of("matrix", "half", "brain"), List.copyOf(file.names()));
      assertArrayEquals(new long[] {2, 3}, file.tensor("matrix").shape());
      assertEquals(6, file.tensor("matrix").getFloat(1, 2));
      assertTrue(file.tensor("matrix").segment().isReadOnly());
      assertArrayEquals(new float[] {1.5f, -2}, file.tensor("half").toFloatArray());
      assertEquals(DType.BF16, file.tensor("brain").dtype());
      assertArrayEquals(new float[] {1.5f, -2}, file.tensor("brain").toFloatArray());
      assertRefused(() -> file.tensor("none"), "'none'", "no tensor of this name");
      assertRefused(() -> metadata.text("integer"), "'integer'", "a string", "UINT32");
      assertRefused(() -> metadata.integer("text"), "'text'", "an integer", "STRING");
      assertRefused(() -> metadata.number("flag"), "'flag'", "floating-point", "BOOL");
      assertRefused(() -> metadata.flag("number"), "'number'", "true", "FLOAT32");
      assertRefused(() -> metadata.texts("bytes"), "'bytes'", "strings", "an array of 3 UINT8");
      assertRefused(() -> metadata.integers("texts"), "'texts'", "integers", "an array of 3 STRING");
    }
  }

  @Test
  void blocks() throws IOException {
    var q8 = new byte[34];
    q8[1] = 0x38; // binary16 0.5
    var q4 = new byte[18];
    q4[1] = 0x38;
    for (int i = 0; i < 32; i++) {
      q8[2 + i] = (byte) (i * 8 - 128);
    }
    for (int i = 0; i < 16; i++) {
      q4[2 + i] = (byte) (i | 15 - i << 4);
    }
    builder.tensor("q8", 8, concat(q8, q8), 2, 32).tensor("q4", 2, concat(q4, q4), 1, 64);
    try (GgufFile file = read(builder.build())) {
      Tensor eight = file.tensor("q8");
      assertEquals(DType.Q8_0, eight.dtype());
      Tensor four = file.tensor("q4");
      assertEquals(DType.Q4_0, four.dtype());
      for (int i = 0; i < 32; i++) {
        assertEquals(0.5f * (i * 8 - 128), eight.getFloat(1, i));
        assertEquals(0.5f * ((i < 16 ? i : 31 - i) - 8), four.getFloat(0, 32 + i));
      }
    }
  }

  @ParameterizedTest
  @CsvSource({"3,Q4_1", "6,Q5_0", "7,Q5_1", "9,Q8_1", "10,Q2_K", "12,Q4_K", "14,Q6_K", "15,Q8_K", "16,IQ2_XXS",
    "23,IQ4_XS", "24,I8", "28,F64", "29,IQ1_M", "34,TQ1_0", "39,MXFP4", "40,NVFP4", "41,Q1_0", "999,unknown type 999"})
  void otherTypesAreRefusedByName(int type, String name) {
    builder.tensor("blk.0.ssm_in.weight", type, new byte[512], 1, 256);
    assertBuilderRefused("'blk.0.ssm_in.weight'", "F32, F16, BF16, Q8_0 or Q4_0", name);
  }

  @Test
  void otherFilesAndVersions() {
    assertRefused(() -> read(new byte[0]), "magic", "4 bytes at byte 0", "end of the file at 0");
    assertRefused(() -> read(Goldens.utf8("GGMLxxxx")), "expected GGUF", "0x47474d4c");
    builder.version = 1;
    assertBuilderRefused("version", "2 or 3", "found 1");
    builder.version = 4;
    assertBuilderRefused("version", "found 4");
    builder.version = Integer.reverseBytes(3);
    assertBuilderRefused("version", "little-endian", "a big-endian file");
  }

  @Test
  void everyTruncationIsRefused() throws IOException {
    builder.text("a", "b").texts("c", List.of("d", "e")).integer("f", 1);
    builder.tensors.add(floats("x", null, 2, 3));
    byte[] whole = builder.build();
    read(whole).close();
    for (int length = 0; length < whole.length; length++) {
      byte[] part = Arrays.copyOf(whole, length);
      assertRefused(() -> read(part), "a.gguf");
    }
  }

  @Test
  void parts() {
    builder.integer("split.count", 3);
    assertBuilderRefused("split.count", "one of 3 parts", "llama-gguf-split");
  }

  @Test
  void countsAndLengths() {
    byte[] header = concat(Goldens.utf8("GGUF"), u32(3));
    assertRefused(() -> read(concat(header, u64(-1), u64(0))), "number of tensors", "18446744073709551615");
    assertRefused(() -> read(concat(header, u64(0), u64(1L << 40))), "number of metadata pairs");
    byte[] pair = concat(header, u64(0), u64(1));
    assertRefused(() -> read(concat(pair, u64(1L << 20))), "length of metadata key 0", "65535");
    assertRefused(() -> read(concat(pair, u64(100), new byte[50])), "metadata key 0", "100 bytes");
    byte[] key = concat(pair, GgufBuilder.string("k"));
    assertRefused(() -> read(concat(key, u32(13))), "type of metadata 'k'", "0 to 12", "13");
    assertRefused(() -> read(concat(key, u32(-1))), "type of metadata 'k'", "4294967295");
    assertRefused(() -> read(concat(key, u32(STRING), u64(-1))), "metadata 'k'");
    assertRefused(() -> read(concat(key, u32(STRING), u64(Long.MAX_VALUE))), "metadata 'k'", "end of the file");
    byte[] array = concat(key, u32(ARRAY));
    assertRefused(() -> read(concat(array, u32(UINT64), u64(1L << 61))), "metadata 'k'", "of 8 bytes");
    assertRefused(() -> read(concat(array, u32(STRING), u64(Long.MAX_VALUE))), "metadata 'k'");
    assertRefused(() -> read(concat(array, u32(ARRAY), u64(1))), "metadata 'k'", "an array of arrays");
    assertRefused(() -> read(concat(array, u32(77), u64(1))), "elements of metadata 'k'", "77");
    byte[] tensor = concat(header, u64(1), u64(0));
    assertRefused(() -> read(concat(tensor, u64(1000))), "name of tensor 0", "256", "1000");
  }

  @Test
  void duplicates() throws IOException {
    byte[] pair = concat(GgufBuilder.string("twice"), u32(UINT32), u32(1));
    byte[] keys = concat(Goldens.utf8("GGUF"), u32(3), u64(0), u64(2), pair, pair);
    assertRefused(() -> read(keys), "metadata 'twice'", "once");
    builder.tensors.add(floats("x", null, 2));
    builder.tensors.add(floats("x", null, 2));
    assertBuilderRefused("tensor 'x'", "once");
  }

  @Test
  void shapes() {
    builder.tensor("x", 0, new byte[4], new long[0]);
    assertBuilderRefused("tensor 'x'", "1 to 4 dimensions", "found 0");
    builder.tensors.clear();
    builder.tensor("x", 0, new byte[4], 1, 1, 1, 1, 1);
    assertBuilderRefused("tensor 'x'", "1 to 4 dimensions", "found 5");
    for (long dim : new long[] {0, -1, Long.MIN_VALUE}) {
      builder.tensors.clear();
      builder.tensor("x", 0, new byte[4], dim);
      assertBuilderRefused("dimension of tensor 'x'", Long.toUnsignedString(dim));
    }
    builder.tensors.clear();
    builder.tensor("x", 0, new byte[4], 1L << 40, 1L << 40);
    assertBuilderRefused("tensor 'x'", "below 2^63 bytes");
    builder.tensors.clear();
    builder.tensor("x", 0, new byte[4], 1L << 61);
    assertBuilderRefused("tensor 'x'", "below 2^63 bytes");
    builder.tensors.clear();
    builder.tensor("x", 8, new byte[51], 2, 48);
    assertBuilderRefused("tensor 'x'", "Q8_0 rows of a multiple of 32", "[2, 48]");
  }

  @Test
  void places() throws IOException {
    builder.tensors.add(floats("x", null, 16));
    builder.tensors.add(floats("y", 32L, 16));
    assertBuilderRefused("tensor 'y'", "bytes of its own", "offset 32 inside of 'x'");
    builder.tensors.set(1, floats("y", 4L, 16));
    assertBuilderRefused("tensor 'y'", "multiple of 32", "found 4");
    builder.tensors.set(1, floats("y", 96L, 16));
    assertBuilderRefused("tensor 'y'", "within the file's 128 bytes", "64 bytes at offset 96");
    builder.tensors.set(1, floats("y", Long.MAX_VALUE - 31, 16));
    assertBuilderRefused("tensor 'y'", "within the file's 128 bytes");
    builder.tensors.set(1, floats("y", -32L, 16));
    assertBuilderRefused("offset of tensor 'y'", "18446744073709551584");
    builder.tensors.set(1, floats("y", null, 16));
    read(builder.build()).close();
  }

  @Test
  void alignment() throws IOException {
    for (long wrong : new long[] {0, 24, 1 << 20}) {
      builder.integer("general.alignment", wrong);
      assertBuilderRefused("'general.alignment'", "power of two", "found " + wrong);
    }
    builder.flag("general.alignment", true);
    assertBuilderRefused("'general.alignment'", "an integer", "BOOL");
    builder.alignment = 64;
    builder.integer("general.alignment", 64);
    builder.tensor("x", 0, GgufBuilder.encode(DType.F32, new float[] {1}), 1);
    builder.tensor("y", 0, GgufBuilder.encode(DType.F32, new float[] {2}), 1);
    try (GgufFile file = read(builder.build())) {
      assertEquals(2, file.tensor("y").getFloat(0));
    }
  }

  @Test
  void flagsAreZeroOrOne() throws IOException {
    builder.put("flag", BOOL, new byte[] {2});
    try (GgufFile file = read(builder.build())) {
      assertRefused(() -> file.metadata().flag("flag"), "'flag'", "true (1) or false (0)", "2");
    }
  }
}
