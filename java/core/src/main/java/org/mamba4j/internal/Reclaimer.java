package org.mamba4j.internal;

import java.lang.foreign.Arena;
import java.lang.ref.Cleaner;
import java.util.concurrent.locks.LockSupport;

/** Gives native resources back. */
public final class Reclaimer {
  /** Safety net for what nobody closed. */
  private static final Cleaner CLEANER = Cleaner.create();

  private Reclaimer() {}

  /** Runs {@code release}, which must not refer to {@code owner}, once {@code owner} is unreachable. */
  public static void whenForgotten(Object owner, Runnable release) {
    CLEANER.register(owner, release);
  }

  /** Closes a shared arena, waiting for native calls of other threads that use its memory. */
  public static void close(Arena arena) {
    while (arena.scope().isAlive()) {
      try {
        arena.close();
      } catch (IllegalStateException inUse) {
        LockSupport.parkNanos(50_000);
      }
    }
  }
}
