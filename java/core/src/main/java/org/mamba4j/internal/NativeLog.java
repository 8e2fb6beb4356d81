package org.mamba4j.internal;

import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import org.mamba4j.ffi.m4j_log_fn;
import org.mamba4j.ffi.mamba4j_h;

/** Passes the native library's log on to the logger "org.mamba4j". */
public final class NativeLog {
  private static final Logger LOGGER = System.getLogger("org.mamba4j");

  /** An m4j_log_fn. It is never freed, because an engine may outlive the Java object that made it. */
  public static final MemorySegment CALLBACK = m4j_log_fn.allocate(NativeLog::log, Arena.global());

  private NativeLog() {}

  private static void log(MemorySegment user, int level, MemorySegment message) {
    try {
      LOGGER.log(javaLevel(level), message.getString(0));
    } catch (Throwable ignored) {
      // A logger that fails costs its line; an exception that left an upcall would end the JVM.
    }
  }

  private static Level javaLevel(int level) {
    if (level == mamba4j_h.M4J_LOG_DEBUG()) {
      return Level.DEBUG;
    }
    if (level == mamba4j_h.M4J_LOG_INFO()) {
      return Level.INFO;
    }
    return level == mamba4j_h.M4J_LOG_WARNING() ? Level.WARNING : Level.ERROR;
  }
}
