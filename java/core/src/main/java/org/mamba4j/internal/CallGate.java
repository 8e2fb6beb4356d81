package org.mamba4j.internal;

import java.util.concurrent.atomic.AtomicInteger;

/**
 * Guards something native that may be closed by any thread at any time: calls enter and leave, closing waits until
 * the last one has left, and nothing enters afterwards. Entering and leaving allocate nothing.
 */
public final class CallGate {
  private static final int CLOSED = Integer.MIN_VALUE;

  private final String what;
  private final AtomicInteger calls = new AtomicInteger(); // calls inside, with the sign bit once closed
  private final Object releasing = new Object(); // not this: release may wait for a thread that is inside leave
  private boolean released;

  /** {@code what} begins the messages: "the model ...". */
  public CallGate(String what) {
    this.what = what;
  }

  /** Enters beside any number of other calls. */
  public void enter() {
    if (!tryEnter()) {
      throw closed();
    }
  }

  /** Enters beside any number of other calls; false once closed. */
  public boolean tryEnter() {
    int now = calls.get();
    while (now >= 0) {
      if (calls.compareAndSet(now, now + 1)) {
        return true;
      }
      now = calls.get();
    }
    return false;
  }

  /** Enters, and throws if any other call is inside. */
  public void enterAlone() {
    if (!calls.compareAndSet(0, 1)) {
      if (isClosed()) {
        throw closed();
      }
      throw new IllegalStateException(what + " is in use by another call; only one thread may use it at a time");
    }
  }

  /** Leaves; exactly once for every successful enter. */
  public void leave() {
    if (calls.decrementAndGet() == CLOSED) {
      synchronized (this) {
        notifyAll();
      }
    }
  }

  public boolean isClosed() {
    return calls.get() < 0;
  }

  /** Throws if closed. */
  public void checkOpen() {
    if (isClosed()) {
      throw closed();
    }
  }

  /** Lets nothing in any more, waits for the calls inside and runs {@code release}, once whoever closes how often. */
  public void close(Runnable release) {
    calls.getAndUpdate(now -> now | CLOSED);
    boolean interrupted = false;
    synchronized (this) {
      while (calls.get() != CLOSED) {
        try {
          wait();
        } catch (InterruptedException e) {
          interrupted = true;
        }
      }
    }
    synchronized (releasing) {
      if (!released) {
        released = true;
        release.run();
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  private IllegalStateException closed() {
    return new IllegalStateException(what + " is closed");
  }
}
