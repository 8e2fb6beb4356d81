package org.mamba4j.internal;

import static org.mamba4j.ffi.mamba4j_h.M4J_ERR_BUSY;
import static org.mamba4j.ffi.mamba4j_h.M4J_ERR_EXHAUSTED;
import static org.mamba4j.ffi.mamba4j_h.M4J_ERR_INTERNAL;
import static org.mamba4j.ffi.mamba4j_h.M4J_ERR_INVALID_ARGUMENT;
import static org.mamba4j.ffi.mamba4j_h.M4J_ERR_MISMATCH;
import static org.mamba4j.ffi.mamba4j_h.M4J_ERR_OUT_OF_MEMORY;
import static org.mamba4j.ffi.mamba4j_h.M4J_ERR_STALE_SLOT;
import static org.mamba4j.ffi.mamba4j_h.M4J_ERR_UNSUPPORTED;
import static org.mamba4j.ffi.mamba4j_h.M4J_OK;

import java.lang.foreign.MemorySegment;
import org.mamba4j.MambaException;
import org.mamba4j.ffi.m4j_error;

/** Turns a native status and its sentence into an exception. */
public final class Status {
  private Status() {}

  /** Whether {@code status} leaves the state of the slots that took part undefined. */
  public static boolean spoilsState(int status) {
    return status == M4J_ERR_INTERNAL();
  }

  /** Throws what {@code status} stands for, unless it is M4J_OK. {@code error} is an m4j_error. */
  public static void check(int status, MemorySegment error) {
    RuntimeException failure = failure(status, error);
    if (failure != null) {
      throw failure;
    }
  }

  /** What {@link #check} would throw, null for M4J_OK. */
  public static RuntimeException failure(int status, MemorySegment error) {
    return status == M4J_OK() ? null : exception(status, m4j_error.message(error).getString(0));
  }

  private static RuntimeException exception(int status, String message) {
    if (status == M4J_ERR_INVALID_ARGUMENT() || status == M4J_ERR_MISMATCH()) {
      return new IllegalArgumentException(message);
    }
    if (status == M4J_ERR_STALE_SLOT() || status == M4J_ERR_BUSY() || status == M4J_ERR_EXHAUSTED()) {
      return new IllegalStateException(message);
    }
    if (status == M4J_ERR_UNSUPPORTED()) {
      return new UnsupportedOperationException(message);
    }
    if (status == M4J_ERR_OUT_OF_MEMORY()) {
      return new MambaException("out of native memory: " + message);
    }
    return new MambaException("native status " + status + ": " + message);
  }
}
