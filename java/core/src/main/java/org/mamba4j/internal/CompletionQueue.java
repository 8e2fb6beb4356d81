package org.mamba4j.internal;

import static org.mamba4j.ffi.mamba4j_h.C_POINTER;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;
import org.mamba4j.MambaException;
import org.mamba4j.ffi.m4j_completion;
import org.mamba4j.ffi.m4j_error;
import org.mamba4j.ffi.mamba4j_h;

/**
 * The asynchronous calls on an engine: a native queue, whose own thread makes them, and a Java thread that sleeps in it
 * until one has ended. That thread runs no code of users: it would keep it from the next completion, for which that
 * code may be waiting. An engine and its models hold the queue together; the last to let go ends it.
 */
public final class CompletionQueue {
  /** Told once that a call has ended, by the thread of the queue; {@code failure} is null for M4J_OK. */
  public interface Listener {
    void ended(int status, RuntimeException failure);
  }

  private static final System.Logger LOGGER = System.getLogger("org.mamba4j");
  private static final MambaException NO_MEMORY =
      new MambaException("an asynchronous call has failed, and there is no heap left to say why");

  private final MemorySegment queue;
  private final Map<Long, Listener> inFlight = new ConcurrentHashMap<>(); // by tag
  private final AtomicLong tags = new AtomicLong();
  private int holders = 1;
  private Thread reaper; // null until the first call
  private boolean releasedByReaper;

  private CompletionQueue(MemorySegment queue) {
    this.queue = queue;
  }

  /** The queue of {@code engine}, an m4j_engine, held once. */
  public static CompletionQueue create(MemorySegment engine) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment out = arena.allocate(C_POINTER);
      MemorySegment error = m4j_error.allocate(arena);
      Status.check(mamba4j_h.m4j_queue_create(engine, out, error), error);
      return new CompletionQueue(out.get(C_POINTER, 0));
    }
  }

  /** Holds the queue once more. */
  public synchronized CompletionQueue retain() {
    holders++;
    return this;
  }

  /** Lets go of it; the last one waits for what is still in it. */
  public void release() {
    Thread last;
    synchronized (this) {
      if (--holders > 0) {
        return;
      }
      last = reaper;
    }
    mamba4j_h.m4j_queue_close(queue);
    if (last == Thread.currentThread()) {
      releasedByReaper = true;
      return;
    }
    if (last != null) {
      join(last);
    }
    mamba4j_h.m4j_queue_release(queue);
  }

  /**
   * Submits an m4j_advance and returns the status of that; {@code listener} hears of its end if it is M4J_OK. What
   * {@code args} points to stays valid until then.
   */
  public int advance(MemorySegment states, MemorySegment args, MemorySegment error, Listener listener) {
    startReaper();
    long tag = tags.incrementAndGet();
    inFlight.put(tag, listener);
    int status = mamba4j_h.m4j_queue_advance(queue, states, args, tag, error);
    if (status != mamba4j_h.M4J_OK()) {
      inFlight.remove(tag);
    }
    return status;
  }

  /** Completes {@code future} in a thread where what depends on it may block. */
  public static <T> void complete(CompletableFuture<T> future, T value, Throwable failure) {
    try {
      Thread.startVirtualThread(() -> end(future, value, failure));
    } catch (RuntimeException | OutOfMemoryError e) {
      end(future, value, failure); // better in the wrong thread than never
    }
  }

  private static <T> void end(CompletableFuture<T> future, T value, Throwable failure) {
    if (failure == null) {
      future.complete(value);
    } else {
      future.completeExceptionally(failure);
    }
  }

  private synchronized void startReaper() {
    if (reaper == null) {
      reaper = Thread.ofPlatform().daemon().name("mamba4j-completions").start(this::reap);
    }
  }

  private void reap() {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment completion = m4j_completion.allocate(arena);
      MemorySegment error = m4j_error.allocate(arena);
      int next;
      while ((next = mamba4j_h.m4j_queue_next(queue, -1, completion, error)) != mamba4j_h.M4J_ERR_EXHAUSTED()) {
        if (next == mamba4j_h.M4J_OK()) {
          end(completion);
        }
      }
    }
    if (releasedByReaper) {
      mamba4j_h.m4j_queue_release(queue);
    }
  }

  /** Whatever happens, the thread lives on for the other calls. */
  private void end(MemorySegment completion) {
    try {
      MemorySegment result = m4j_completion.error(completion);
      int status = m4j_error.code(result);
      Listener listener = inFlight.remove(m4j_completion.tag(completion));
      RuntimeException failure;
      try {
        failure = Status.failure(status, result);
      } catch (OutOfMemoryError e) {
        failure = NO_MEMORY;
      }
      listener.ended(status, failure);
    } catch (RuntimeException | Error e) {
      LOGGER.log(System.Logger.Level.ERROR, "the end of an asynchronous call", e);
    }
  }

  private static void join(Thread thread) {
    boolean interrupted = false;
    while (true) {
      try {
        thread.join();
        break;
      } catch (InterruptedException e) {
        interrupted = true;
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }
}
