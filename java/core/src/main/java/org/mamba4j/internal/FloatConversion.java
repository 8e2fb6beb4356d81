package org.mamba4j.internal;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT_UNALIGNED;
import static java.lang.foreign.ValueLayout.JAVA_SHORT_UNALIGNED;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

/** Conversion between F32, F16 and BF16, in pieces that stay in the cache. */
public final class FloatConversion {
  private static final int PIECE = 1 << 13;
  private static final ValueLayout.OfFloat F32 = JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort I16 = JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private FloatConversion() {}

  /**
   * Fills {@code to} with the elements of {@code from}, rounded to nearest, ties to even. Both are contiguous and of as
   * many elements.
   *
   * @throws IllegalArgumentException if a finite element becomes infinite; {@code name} begins the message
   */
  public static void convert(String name, Tensor from, Tensor to) {
    float[] values = new float[PIECE];
    short[] halves = new short[PIECE];
    for (long at = 0; at < from.size(); at += PIECE) {
      int count = (int) Math.min(PIECE, from.size() - at);
      read(from, at, count, values, halves);
      int overflow = write(to, at, count, values, halves);
      if (overflow >= 0) {
        throw new IllegalArgumentException(
            "%s: element %d is %s, too large for %s".formatted(name, at + overflow, values[overflow], to.dtype()));
      }
    }
  }

  private static void read(Tensor from, long at, int count, float[] values, short[] halves) {
    MemorySegment memory = from.segment();
    if (from.dtype() == DType.F32) {
      MemorySegment.copy(memory, F32, at * Float.BYTES, values, 0, count);
      return;
    }
    MemorySegment.copy(memory, I16, at * Short.BYTES, halves, 0, count);
    if (from.dtype() == DType.F16) {
      for (int i = 0; i < count; i++) {
        values[i] = Float.float16ToFloat(halves[i]);
      }
    } else {
      for (int i = 0; i < count; i++) {
        values[i] = Float.intBitsToFloat(halves[i] << 16);
      }
    }
  }

  /** The index of an element that became infinite, -1 if none did. */
  private static int write(Tensor to, long at, int count, float[] values, short[] halves) {
    MemorySegment memory = to.segment();
    if (to.dtype() == DType.F32) {
      MemorySegment.copy(values, 0, memory, F32, at * Float.BYTES, count);
      return -1;
    }
    boolean f16 = to.dtype() == DType.F16;
    if (f16) {
      for (int i = 0; i < count; i++) {
        halves[i] = Float.floatToFloat16(values[i]);
      }
    } else {
      for (int i = 0; i < count; i++) {
        halves[i] = toBfloat16(values[i]);
      }
    }
    MemorySegment.copy(halves, 0, memory, I16, at * Short.BYTES, count);
    int infinity = f16 ? 0x7c00 : 0x7f80;
    for (int i = 0; i < count; i++) {
      if ((halves[i] & 0x7fff) == infinity && !Float.isInfinite(values[i])) {
        return i;
      }
    }
    return -1;
  }

  /** Rounded to nearest, ties to even. */
  public static short toBfloat16(float value) {
    int bits = Float.floatToRawIntBits(value);
    if (Float.isNaN(value)) {
      return (short) (bits >>> 16 | 0x40); // rounding could turn a NaN into infinity; keep it a quiet NaN
    }
    return (short) (bits + 0x7fff + (bits >>> 16 & 1) >>> 16);
  }
}
