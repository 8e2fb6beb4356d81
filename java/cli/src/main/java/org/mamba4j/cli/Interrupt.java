package org.mamba4j.cli;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/** While open, lets Ctrl-C end a command in good order: it is told, and the process waits a moment for its end. */
final class Interrupt implements AutoCloseable {
  private static final long PATIENCE_SECONDS = 5;

  private final CountDownLatch ended = new CountDownLatch(1);
  private final Thread hook;

  /** @param cancel asks the command to end soon; called from another thread when the process is told to end */
  Interrupt(Runnable cancel) {
    hook = new Thread(() -> cancelAndWait(cancel), "interrupt");
    Runtime.getRuntime().addShutdownHook(hook);
  }

  private void cancelAndWait(Runnable cancel) {
    Thread.ofPlatform().daemon().start(cancel); // may wait itself, for a disk
    try {
      ended.await(PATIENCE_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  /** The command has ended and flushed its output. */
  @Override
  public void close() {
    ended.countDown();
    try {
      Runtime.getRuntime().removeShutdownHook(hook);
    } catch (IllegalStateException shuttingDown) {
      // the hook is what is running
    }
  }
}
