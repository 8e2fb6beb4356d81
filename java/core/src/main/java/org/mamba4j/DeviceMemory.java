package org.mamba4j;

import static org.mamba4j.ffi.mamba4j_h.C_POINTER;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import org.mamba4j.ffi.m4j_error;
import org.mamba4j.ffi.mamba4j_h;
import org.mamba4j.internal.Status;

/** GPU memory as segments, which have bounds and a lifetime but must never be accessed. */
final class DeviceMemory {
  private static final int MAX_ATTEMPTS = 5;

  private DeviceMemory() {}

  /** Zeroed memory of the engine's GPU that ends with {@code arena}. */
  static MemorySegment allocate(Arena arena, Engine engine, long bytes) {
    MemorySegment buffer = create(engine, bytes);
    try {
      return mamba4j_h
          .m4j_buffer_data(buffer)
          .reinterpret(bytes, arena, memory -> mamba4j_h.m4j_buffer_release(buffer));
    } catch (RuntimeException | Error e) {
      mamba4j_h.m4j_buffer_release(buffer);
      throw e;
    }
  }

  /** Somebody's memory at {@code address}, which ends with {@code arena}. */
  static MemorySegment view(Arena arena, long address, long bytes) {
    return MemorySegment.ofAddress(address).reinterpret(bytes, arena, null);
  }

  /** The garbage collector does not see how full a GPU is: it is asked once there is no room. */
  private static MemorySegment create(Engine engine, long bytes) {
    try (Arena call = Arena.ofConfined()) {
      MemorySegment out = call.allocate(C_POINTER);
      MemorySegment error = m4j_error.allocate(call);
      for (int attempt = 1; ; attempt++) {
        int status;
        engine.enter();
        try {
          status = mamba4j_h.m4j_buffer_create(engine.pointer(), bytes, out, error);
        } finally {
          engine.leave();
        }
        if (status != mamba4j_h.M4J_ERR_OUT_OF_MEMORY() || attempt == MAX_ATTEMPTS) {
          Status.check(status, error);
          return out.get(C_POINTER, 0);
        }
        collectGarbage(attempt);
      }
    }
  }

  private static void collectGarbage(int attempt) {
    System.gc();
    try {
      Thread.sleep(10L << attempt); // for what is unreachable to be released
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }
}
