package org.mamba4j;

import static org.mamba4j.ffi.mamba4j_h.C_POINTER;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import org.mamba4j.ffi.m4j_engine_options;
import org.mamba4j.ffi.m4j_error;
import org.mamba4j.ffi.mamba4j_h;
import org.mamba4j.internal.CallGate;
import org.mamba4j.internal.CompletionQueue;
import org.mamba4j.internal.CudaLibrary;
import org.mamba4j.internal.NativeLibrary;
import org.mamba4j.internal.NativeLog;
import org.mamba4j.internal.Reclaimer;
import org.mamba4j.internal.Status;

/**
 * A device and its threads. Any number of models and threads may share one; computations take turns on it, and its
 * threads sleep in between. What the native library logs goes to the {@link System.Logger} named {@code org.mamba4j}.
 *
 * <p>Closing waits for running {@link Ops}. Models that use the engine keep working: its threads end with the last of
 * them.
 */
public final class Engine implements AutoCloseable {
  private final Handle handle;
  private final Device device;

  private Engine(Handle handle, Device device) {
    this.handle = handle;
    this.device = device;
    Reclaimer.whenForgotten(this, handle::close);
  }

  /** An engine with {@link EngineOptions#defaults()}. */
  public static Engine create() {
    return create(EngineOptions.defaults());
  }

  /**
   * Starts an engine.
   *
   * @throws IllegalArgumentException if the number of threads is out of range
   * @throws UnsupportedOperationException if the instruction set is not offered by this build or processor, or if the
   *     GPU cannot be used; the message says what is missing: driver, device, library
   * @throws MambaException if the native library cannot be loaded or gets no memory or threads
   */
  public static Engine create(EngineOptions options) {
    NativeLibrary.load();
    try (Arena arena = Arena.ofConfined();
        CudaLibrary cuda = options.device().isCuda() ? CudaLibrary.find() : null) {
      MemorySegment struct = m4j_engine_options.allocate(arena);
      m4j_engine_options.struct_size(struct, m4j_engine_options.sizeof());
      m4j_engine_options.threads(struct, options.threads());
      m4j_engine_options.log(struct, NativeLog.CALLBACK);
      if (options.simdTarget() != null) {
        m4j_engine_options.simd_target(struct, arena.allocateFrom(options.simdTarget()));
      }
      if (cuda != null) {
        m4j_engine_options.device(struct, mamba4j_h.M4J_DEVICE_CUDA());
        m4j_engine_options.device_index(struct, options.device().index());
        if (cuda.file() != null) {
          m4j_engine_options.cuda_library(struct, arena.allocateFrom(cuda.file().toString()));
        }
      }
      MemorySegment out = arena.allocate(C_POINTER);
      MemorySegment error = m4j_error.allocate(arena);
      Status.check(mamba4j_h.m4j_engine_create(struct, out, error), error);
      return new Engine(new Handle(out.get(C_POINTER, 0)), options.device());
    }
  }

  /** Where it computes. */
  public Device device() {
    return device;
  }

  /** Threads that share a computation. */
  public int threads() {
    enter();
    try {
      return mamba4j_h.m4j_engine_threads(handle.pointer);
    } finally {
      leave();
    }
  }

  /** The instruction set in use. */
  public String simdTarget() {
    enter();
    try {
      return mamba4j_h.m4j_engine_simd_target(handle.pointer).getString(0);
    } finally {
      leave();
    }
  }

  /** "CPU", or the product name of the GPU such as "NVIDIA H200". */
  public String deviceName() {
    enter();
    try {
      return mamba4j_h.m4j_engine_device_name(handle.pointer).getString(0);
    } finally {
      leave();
    }
  }

  /** Bytes of GPU memory that the engine, its tensors, models and sessions hold at this moment; 0 on the CPU. */
  public long deviceBytes() {
    enter();
    try {
      return mamba4j_h.m4j_engine_device_bytes(handle.pointer);
    } finally {
      leave();
    }
  }

  /** Instruction sets that the library holds and this processor runs, best first. */
  public static List<String> simdTargets() {
    NativeLibrary.load();
    return List.of(mamba4j_h.m4j_simd_targets().getString(0).split(" "));
  }

  /** Bytes that the native library holds on its heap at this moment, over all engines, models and sessions. */
  public static long nativeBytes() {
    NativeLibrary.load();
    return mamba4j_h.m4j_native_bytes();
  }

  /** Releases the engine after waiting for running operations. May be called from any thread, any number of times. */
  @Override
  public void close() {
    handle.close();
  }

  /** Throws {@link IllegalStateException} once closed. */
  void checkOpen() {
    handle.gate.checkOpen();
  }

  /** Begins a native call on {@link #pointer()}; throws {@link IllegalStateException} once closed. */
  void enter() {
    handle.gate.enter();
  }

  /** Ends a native call. */
  void leave() {
    handle.gate.leave();
  }

  /** The m4j_engine, valid between {@link #enter} and {@link #leave}. */
  MemorySegment pointer() {
    return handle.pointer;
  }

  /** Asynchronous calls on the engine; who keeps it retains it. Between {@link #enter} and {@link #leave}. */
  CompletionQueue queue() {
    return handle.queue;
  }

  private static final class Handle {
    final CallGate gate = new CallGate("the engine");
    final MemorySegment pointer;
    final CompletionQueue queue;

    Handle(MemorySegment pointer) {
      this.pointer = pointer;
      try {
        this.queue = CompletionQueue.create(pointer);
      } catch (RuntimeException | Error e) {
        mamba4j_h.m4j_engine_release(pointer);
        throw e;
      }
    }

    void close() {
      gate.close(this::release);
    }

    private void release() {
      queue.release();
      mamba4j_h.m4j_engine_release(pointer);
    }
  }
}
