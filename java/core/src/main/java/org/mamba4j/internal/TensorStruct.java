package org.mamba4j.internal;

import static org.mamba4j.ffi.mamba4j_h.M4J_BF16;
import static org.mamba4j.ffi.mamba4j_h.M4J_F16;
import static org.mamba4j.ffi.mamba4j_h.M4J_F32;
import static org.mamba4j.ffi.mamba4j_h.M4J_MAX_RANK;
import static org.mamba4j.ffi.mamba4j_h.M4J_Q4_0;
import static org.mamba4j.ffi.mamba4j_h.M4J_Q8_0;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import org.mamba4j.DType;
import org.mamba4j.Tensor;
import org.mamba4j.ffi.m4j_tensor;

/** Describes a {@link Tensor} to native code. */
public final class TensorStruct {
  private TensorStruct() {}

  /**
   * Fills {@code struct}, an m4j_tensor, with a view on the memory of {@code tensor}. Native code then knows the
   * memory by its address only: the caller keeps it alive. {@code name} begins the messages.
   */
  public static void write(MemorySegment struct, String name, Tensor tensor) {
    MemorySegment pointer = tensor.pointer();
    if (!pointer.isNative()) {
      throw new IllegalArgumentException(
          name + ": off-heap memory expected, found a Java array; copy it with Tensor.copyOf or Tensor.copyTo(Arena)");
    }
    if (tensor.rank() == 0 || tensor.rank() > M4J_MAX_RANK()) {
      throw new IllegalArgumentException(
          "%s: 1 to %d dimensions expected, found shape %s"
              .formatted(name, M4J_MAX_RANK(), Arrays.toString(tensor.shape())));
    }
    if (!tensor.isAligned()) {
      throw new IllegalArgumentException(
          "%s: memory aligned to its %s elements expected, found address 0x%x; copy it with Tensor.copyTo(Arena)"
              .formatted(name, tensor.dtype(), pointer.address()));
    }
    m4j_tensor.data(struct, pointer);
    m4j_tensor.dtype(struct, dtype(name, tensor.dtype()));
    m4j_tensor.rank(struct, tensor.rank());
    long[] shape = tensor.shape();
    long[] strides = tensor.strides();
    for (int d = 0; d < shape.length; d++) {
      m4j_tensor.shape(struct, d, shape[d]);
      m4j_tensor.strides(struct, d, strides[d]);
    }
  }

  private static int dtype(String name, DType dtype) {
    return switch (dtype) {
      case F32 -> M4J_F32();
      case F16 -> M4J_F16();
      case BF16 -> M4J_BF16();
      case Q8_0 -> M4J_Q8_0();
      case Q4_0 -> M4J_Q4_0();
      case F64, I64, I32, I16, I8, U8, BOOL ->
          throw new IllegalArgumentException(name + ": F32, F16, BF16, Q8_0 or Q4_0 expected, found " + dtype);
    };
  }
}
