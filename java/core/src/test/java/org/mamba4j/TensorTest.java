package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class TensorTest {
  private final Arena arena = Arena.ofConfined();

  @AfterEach
  void close() {
    if (arena.scope().isAlive()) {
      arena.close();
    }
  }

  private Tensor counting(long... shape) {
    var values = new float[(int) Arrays.stream(shape).reduce(1, (a, b) -> a * b)];
    for (int i = 0; i < values.length; i++) {
      values[i] = i;
    }
    return Tensor.copyOf(arena, values, shape);
  }

  @Test
  void rowMajorViewOfASegment() {
    Tensor t = counting(2, 3);
    assertEquals(2, t.rank());
    assertEquals(6, t.size());
    assertEquals(3, t.dim(1));
    assertArrayEquals(new long[] {2, 3}, t.shape());
    assertArrayEquals(new long[] {3, 1}, t.strides());
    assertEquals(5f, t.getFloat(1, 2));
    assertTrue(t.isContiguous());
    assertTrue(t.isAligned());
    assertEquals(24, t.segment().byteSize());
  }

  @Test
  void viewsShareMemory() {
    Tensor t = counting(2, 3, 4);
    assertEquals(1 * 12 + 2 * 4 + 3, t.select(0, 1).select(0, 2).getFloat(3));
    assertArrayEquals(new float[] {13, 17, 21}, t.select(0, 1).select(1, 1).toFloatArray());
    assertArrayEquals(new float[] {4, 5, 6, 7}, t.slice(1, 1, 2).select(0, 0).toFloatArray());
    assertArrayEquals(new float[] {0, 4, 8, 1, 5, 9}, t.select(0, 0).slice(1, 0, 2).transpose(0, 1).toFloatArray());
    assertArrayEquals(new float[] {18, 19, 20, 21, 22, 23}, t.reshape(4, 6).select(0, 3).toFloatArray());
    t.slice(0, 1, 2).transpose(0, 2).setFloat(-1, 3, 2, 0);
    assertEquals(-1f, t.getFloat(1, 2, 3));
  }

  @Test
  void stridedViewsAreNotContiguousUnlessTheyAre() {
    Tensor t = counting(4, 6);
    assertFalse(t.transpose(0, 1).isContiguous());
    assertFalse(t.slice(1, 0, 5).isContiguous());
    assertTrue(t.slice(0, 1, 3).isContiguous());
    assertTrue(t.slice(0, 1, 2).transpose(0, 1).isContiguous(), "a dimension of 1 may have any stride");
    assertThrows(IllegalStateException.class, () -> t.transpose(0, 1).reshape(24));
    Tensor repeated = Tensor.ofStrided(t.segment(), DType.F32, new long[] {3, 2}, new long[] {0, 1});
    assertArrayEquals(new float[] {0, 1, 0, 1, 0, 1}, repeated.toFloatArray());
    Tensor copy = t.transpose(0, 1).copyTo(arena);
    assertTrue(copy.isContiguous());
    assertArrayEquals(t.transpose(0, 1).toFloatArray(), copy.toFloatArray());
  }

  @Test
  void indicesAreChecked() {
    Tensor t = counting(2, 3);
    assertThrows(IndexOutOfBoundsException.class, () -> t.getFloat(2, 0));
    assertThrows(IndexOutOfBoundsException.class, () -> t.getFloat(0, 3));
    assertThrows(IndexOutOfBoundsException.class, () -> t.getFloat(-1, 0));
    assertThrows(IndexOutOfBoundsException.class, () -> t.getFloat(0));
    assertThrows(IndexOutOfBoundsException.class, () -> t.getFloat(0, 0, 0));
    assertThrows(IndexOutOfBoundsException.class, () -> t.select(0, 2));
    assertThrows(IndexOutOfBoundsException.class, () -> t.select(2, 0));
    assertThrows(IndexOutOfBoundsException.class, () -> t.slice(1, 2, 4));
    assertThrows(IndexOutOfBoundsException.class, () -> t.slice(1, 2, 1));
    assertThrows(IndexOutOfBoundsException.class, () -> t.transpose(0, 2));
    assertThrows(IllegalArgumentException.class, () -> t.reshape(5));
    assertThrows(IllegalArgumentException.class, () -> t.copyTo(new float[5]));
  }

  @Test
  void shapesThatOverflowAreRefused() {
    MemorySegment small = arena.allocate(64);
    long huge = 1L << 40;
    assertThrows(IllegalArgumentException.class, () -> Tensor.of(small, DType.F32, 17));
    assertThrows(IllegalArgumentException.class, () -> Tensor.of(small, DType.F32, -1));
    assertThrows(IllegalArgumentException.class, () -> Tensor.of(small, DType.F32, huge, huge));
    assertThrows(IllegalArgumentException.class, () -> Tensor.of(small, DType.F32, Long.MAX_VALUE));
    assertThrows(IllegalArgumentException.class, () -> Tensor.of(small, DType.I8, 2, Long.MAX_VALUE));
    assertThrows(
        IllegalArgumentException.class,
        () -> Tensor.ofStrided(small, DType.F32, new long[] {2, 2}, new long[] {Long.MAX_VALUE, Long.MAX_VALUE}));
    assertThrows(
        IllegalArgumentException.class,
        () -> Tensor.ofStrided(small, DType.F32, new long[] {huge, huge}, new long[] {0, 0}));
    assertThrows(
        IllegalArgumentException.class, () -> Tensor.ofStrided(small, DType.F32, new long[] {2}, new long[] {-1}));
    assertThrows(
        IllegalArgumentException.class, () -> Tensor.ofStrided(small, DType.F32, new long[] {2}, new long[] {1, 1}));
    assertThrows(IllegalArgumentException.class, () -> Tensor.of(small, DType.I8, new long[Tensor.MAX_RANK + 1]));
    assertThrows(IllegalArgumentException.class, () -> Tensor.copyOf(arena, new float[3], 2));
  }

  @Test
  void emptyAndScalar() {
    Tensor empty = Tensor.allocate(arena, DType.F32, 3, 0, 2);
    assertEquals(0, empty.size());
    assertEquals(0, empty.toFloatArray().length);
    assertEquals(0, empty.select(0, 2).size());
    assertEquals(0, counting(2, 3).slice(1, 3, 3).size());
    Tensor scalar = Tensor.copyOf(arena, new float[] {7});
    assertEquals(7f, scalar.getFloat());
    assertArrayEquals(new float[] {7}, scalar.toFloatArray());
  }

  @ParameterizedTest
  @EnumSource(names = {"F64", "F32", "F16", "BF16"})
  void floatTypesKeepWhatTheyCanHold(DType dtype) {
    Tensor t = Tensor.allocate(arena, dtype, 4);
    float[] exact = {1.5f, -0.0f, Float.POSITIVE_INFINITY, 0.00048828125f};
    for (int i = 0; i < exact.length; i++) {
      t.setFloat(exact[i], i);
    }
    assertArrayEquals(exact, t.toFloatArray());
    t.setFloat(Float.NaN, 0);
    assertTrue(Float.isNaN(t.getFloat(0)));
  }

  @Test
  void bfloat16RoundsToNearestEven() {
    Tensor t = Tensor.allocate(arena, DType.BF16, 1);
    float step = 0x1p-7f;
    t.setFloat(1 + step / 2, 0);
    assertEquals(1f, t.getFloat(0), "a tie goes to the even neighbour below");
    t.setFloat(1 + 3 * step / 2, 0);
    assertEquals(1 + 2 * step, t.getFloat(0), "a tie goes to the even neighbour above");
    t.setFloat(Float.MAX_VALUE, 0);
    assertEquals(Float.POSITIVE_INFINITY, t.getFloat(0));
    t.setFloat(Float.intBitsToFloat(0x7f800001), 0);
    assertTrue(Float.isNaN(t.getFloat(0)), "a NaN whose payload is in the lower half stays one");
  }

  @ParameterizedTest
  @EnumSource(names = {"I64", "I32", "I16", "I8", "U8", "BOOL"})
  void integersAreRead(DType dtype) {
    MemorySegment bytes = arena.allocate(16);
    bytes.fill((byte) 0xff);
    Tensor t = Tensor.of(bytes, dtype, 2);
    long expected = dtype == DType.U8 ? 255 : dtype == DType.BOOL ? 1 : -1;
    assertEquals(expected, t.getLong(1));
    assertEquals(expected, t.getFloat(1));
    assertArrayEquals(new long[] {expected, expected}, t.toLongArray());
    assertThrows(IllegalArgumentException.class, () -> t.setFloat(1, 0));
    assertThrows(IllegalArgumentException.class, () -> counting(1).getLong(0));
  }

  @Test
  void copyFromConvertsFloatsAndKeepsEqualTypesBitByBit() {
    Tensor source = counting(3, 2);
    Tensor half = Tensor.allocate(arena, DType.F16, 2, 3);
    half.copyFrom(source.transpose(0, 1));
    assertArrayEquals(new float[] {0, 2, 4, 1, 3, 5}, half.toFloatArray());
    Tensor wide = Tensor.allocate(arena, DType.I64, 2);
    wide.segment().fill((byte) 0x7f);
    Tensor strided = Tensor.ofStrided(arena.allocate(32), DType.I64, new long[] {2}, new long[] {2});
    strided.copyFrom(wide);
    assertArrayEquals(wide.toLongArray(), strided.toLongArray());
    assertThrows(IllegalArgumentException.class, () -> half.copyFrom(source));
  }

  @Test
  void misalignedMemoryIsReadable() {
    MemorySegment bytes = arena.allocate(64, 8).asSlice(1, 8);
    Tensor t = Tensor.of(bytes, DType.F32, 2);
    t.setFloat(3.25f, 1);
    assertEquals(3.25f, t.getFloat(1));
    assertFalse(t.isAligned());
    assertTrue(t.copyTo(arena).isAligned());
    assertFalse(Tensor.of(MemorySegment.ofArray(new float[2]), DType.F32, 2).isAligned(), "native code needs off-heap");
  }

  @Test
  void directBuffersAreViewedFromPositionToLimit() {
    ByteBuffer buffer = ByteBuffer.allocateDirect(16).order(ByteOrder.LITTLE_ENDIAN);
    buffer.putFloat(4, 2.5f).position(4).limit(12);
    Tensor t = Tensor.of(buffer, DType.F32, 2);
    assertEquals(2.5f, t.getFloat(0));
    assertThrows(IllegalArgumentException.class, () -> Tensor.of(buffer, DType.F32, 3));
    assertThrows(IllegalArgumentException.class, () -> Tensor.of(ByteBuffer.allocate(8), DType.F32, 2));
  }

  @Test
  void lifetimeAndAccessAreTheSegments() {
    Tensor t = counting(2);
    Tensor readOnly = Tensor.of(t.segment().asReadOnly(), DType.F32, 2);
    assertThrows(IllegalArgumentException.class, () -> readOnly.setFloat(1, 0));
    arena.close();
    assertThrows(IllegalStateException.class, () -> t.getFloat(0));
  }

  @ParameterizedTest
  @EnumSource(names = {"Q8_0", "Q4_0"})
  void blocksStayWhole(DType dtype) {
    assertEquals(32, dtype.blockSize());
    assertTrue(dtype.isBlock());
    assertThrows(UnsupportedOperationException.class, dtype::byteSize);
    assertThrows(UnsupportedOperationException.class, dtype::safetensorsName);
    assertTrue(DType.fromSafetensorsName(dtype.name()).isEmpty());
    assertEquals(3 * dtype.blockBytes(), dtype.bytesFor(96));
    assertThrows(IllegalArgumentException.class, () -> dtype.bytesFor(33));
    assertThrows(IllegalArgumentException.class, () -> dtype.bytesFor(-32));
    assertThrows(ArithmeticException.class, () -> DType.F32.bytesFor(Long.MAX_VALUE));

    Tensor t = Tensor.allocate(arena, dtype, 2, 1, 64);
    assertEquals(4 * dtype.blockBytes(), t.segment().byteSize());
    long second = 2 * dtype.blockBytes(); // where the second row's first block begins
    t.segment().set(ValueLayout.JAVA_BYTE, second + 1, (byte) 0x3c); // a scale of 1
    t.segment().set(ValueLayout.JAVA_BYTE, second + 2, (byte) 0x7b);
    float expected = dtype == DType.Q8_0 ? 0x7b : 0xb - 8;
    assertEquals(expected, t.getFloat(1, 0, 0));
    assertEquals(expected, t.select(0, 1).getFloat(0, 0));
    assertEquals(expected, t.slice(0, 1, 2).toFloatArray()[0]);
    assertEquals(expected, t.reshape(4, 32).slice(0, 2, 3).getFloat(0, 0));
    assertEquals(expected, t.transpose(0, 1).getFloat(0, 1, 0));
    assertEquals(expected, t.select(0, 1).slice(1, 0, 32).getFloat(0, 0));
    assertEquals(expected, t.copyTo(arena).getFloat(1, 0, 0));
    assertTrue(t.isAligned());
    Tensor floats = Tensor.allocate(arena, DType.F32, 2, 1, 64);
    floats.copyFrom(t);
    assertEquals(expected, floats.getFloat(1, 0, 0));

    for (Runnable view :
        List.<Runnable>of(
            () -> t.transpose(0, 2),
            () -> t.select(2, 0),
            () -> t.slice(2, 0, 16),
            () -> t.slice(2, 0, 32),
            () -> t.select(0, 0).slice(1, 16, 48),
            () -> t.reshape(8, 16),
            () -> Tensor.allocate(arena, dtype),
            () -> Tensor.allocate(arena, dtype, 4, 8),
            () -> Tensor.ofStrided(t.segment(), dtype, new long[] {2, 32}, new long[] {64, 1}),
            () -> t.copyFrom(floats),
            () -> t.setFloat(1, 0, 0, 0),
            () -> t.getLong(0, 0, 0),
            () -> Tensor.of(t.segment(), dtype, 160))) {
      assertThrows(IllegalArgumentException.class, view::run);
    }
  }
}
