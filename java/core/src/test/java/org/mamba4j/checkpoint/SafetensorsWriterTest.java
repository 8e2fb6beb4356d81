package org.mamba4j.checkpoint;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.InterruptedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

class SafetensorsWriterTest {
  @TempDir Path folder;

  @Test
  void everyTypeComesBackAlignedAndEqual() throws IOException {
    Path path = folder.resolve("out.safetensors");
    try (Arena arena = Arena.ofConfined()) {
      var tensors = new LinkedHashMap<String, Tensor>();
      for (DType dtype : DType.safetensorsTypes()) {
        Tensor tensor = Tensor.allocate(arena, dtype, 3, 1);
        for (long i = 0; i < tensor.segment().byteSize(); i++) {
          tensor.segment().set(ValueLayout.JAVA_BYTE, i, (byte) (i * 37 + dtype.ordinal()));
        }
        tensors.put("t." + dtype, tensor);
      }
      tensors.put("scalar", Tensor.copyOf(arena, new float[] {4}));
      tensors.put("empty \"quoted\" \u00e9", Tensor.allocate(arena, DType.F32, 0, 5));
      SafetensorsWriter.write(path, tensors, Map.of("format", "pt"));
      try (var file = SafetensorsFile.open(path)) {
        assertEquals(tensors.keySet(), file.names());
        assertEquals(Map.of("format", "pt"), file.metadata());
        for (var e : tensors.entrySet()) {
          Tensor read = file.tensor(e.getKey());
          assertTrue(read.isAligned(), e.getKey());
          assertEquals(e.getValue().dtype(), read.dtype());
          assertArrayEquals(e.getValue().shape(), read.shape());
          assertEquals(-1, e.getValue().segment().mismatch(read.segment()));
        }
      }
    }
    long header = ByteBuffer.wrap(Files.readAllBytes(path)).order(ByteOrder.LITTLE_ENDIAN).getLong();
    assertEquals(0, header % 8);
  }

  @Test
  void stridedTensorsAreWrittenInRowMajorOrder() throws IOException {
    Path path = folder.resolve("out.safetensors");
    try (Arena arena = Arena.ofConfined()) {
      Tensor t = Tensor.copyOf(arena, new float[] {0, 1, 2, 3, 4, 5}, 2, 3);
      SafetensorsWriter.write(path, Map.of("t", t.transpose(0, 1)), Map.of());
    }
    try (var file = SafetensorsFile.open(path)) {
      assertArrayEquals(new float[] {0, 3, 1, 4, 2, 5}, file.tensor("t").toFloatArray());
    }
  }

  @Test
  void replacesAFileWithoutDisturbingItsReaders() throws IOException {
    Path path = folder.resolve("out.safetensors");
    try (Arena arena = Arena.ofConfined()) {
      SafetensorsWriter.write(path, Map.of("t", Tensor.copyOf(arena, new float[] {1}, 1)), Map.of());
      try (var old = SafetensorsFile.open(path)) {
        SafetensorsWriter.write(path, Map.of("t", Tensor.copyOf(arena, new float[] {2}, 1)), Map.of());
        assertEquals(1f, old.tensor("t").getFloat(0));
      }
      try (var now = SafetensorsFile.open(path)) {
        assertEquals(2f, now.tensor("t").getFloat(0));
      }
    }
  }

  @Test
  void failuresLeaveNothingBehind() throws IOException {
    Tensor closed;
    try (Arena arena = Arena.ofConfined()) {
      closed = Tensor.allocate(arena, DType.F32, 4);
    }
    Path path = folder.resolve("out.safetensors");
    assertThrows(IllegalStateException.class, () -> SafetensorsWriter.write(path, Map.of("t", closed), Map.of()));
    Tensor heap = Tensor.of(MemorySegment.ofArray(new byte[4]), DType.F32, 1);
    assertThrows(
        IllegalArgumentException.class,
        () -> SafetensorsWriter.write(path, Map.of(SafetensorsHeader.METADATA, heap), Map.of()));
    try (var files = Files.list(folder)) {
      assertEquals(0, files.count());
    }
  }

  @Test
  void anInterruptedWriteLeavesNothingBehind() throws IOException {
    Path path = folder.resolve("out.safetensors");
    try (Arena arena = Arena.ofConfined()) {
      Map<String, Tensor> tensors = Map.of("t", Tensor.copyOf(arena, new float[] {1}, 1));
      Thread.currentThread().interrupt();
      var e = assertThrows(InterruptedIOException.class, () -> SafetensorsWriter.write(path, tensors, Map.of()));
      assertTrue(Thread.interrupted(), "the flag stays set");
      assertTrue(e.getMessage().contains(path.toString()), e.getMessage());
      try (var files = Files.list(folder)) {
        assertEquals(0, files.count());
      }
    }
  }

  @Test
  void sameInputSameBytes() throws IOException {
    try (Arena arena = Arena.ofConfined()) {
      var tensors = new LinkedHashMap<String, Tensor>();
      tensors.put("z", Tensor.copyOf(arena, new float[] {1, 2}, 2));
      tensors.put("a", Tensor.copyOf(arena, new float[] {3}, 1));
      SafetensorsWriter.write(folder.resolve("1"), tensors, Map.of());
      SafetensorsWriter.write(folder.resolve("2"), tensors, Map.of());
    }
    assertEquals(-1, Files.mismatch(folder.resolve("1"), folder.resolve("2")));
    try (var file = SafetensorsFile.open(folder.resolve("1"))) {
      assertEquals("[z, a]", file.names().toString());
    }
  }
}
