package org.mamba4j.internal;

import java.lang.foreign.Arena;
import java.util.Arrays;
import org.mamba4j.DType;
import org.mamba4j.MambaException;
import org.mamba4j.Tensor;

/** Allocates tensors with an error that says what the memory was for. */
public final class OffHeap {
  private OffHeap() {}

  /** A zeroed tensor in {@code arena}; {@code what} begins the message if there is no memory for it. */
  public static Tensor allocate(Arena arena, String what, DType dtype, long... shape) {
    try {
      return Tensor.allocate(arena, dtype, shape);
    } catch (OutOfMemoryError e) {
      throw new MambaException(
          "%s: no memory for %s %s (%s). What is freed by garbage collection may take -XX:MaxDirectMemorySize bytes, by"
                  .formatted(what, dtype, Arrays.toString(shape), e.getMessage())
              + " default as much as the heap",
          e);
    }
  }

  /** A contiguous, aligned copy in {@code arena}. */
  public static Tensor copy(Arena arena, String what, Tensor tensor) {
    Tensor copy = allocate(arena, what, tensor.dtype(), tensor.shape());
    copy.copyFrom(tensor);
    return copy;
  }
}
