package org.mamba4j.cli;

import java.io.PrintWriter;
import java.util.function.LongSupplier;
import org.mamba4j.ProgressListener;

/**
 * Shows long work on standard error: a bar that redraws itself on a terminal, else a line when a piece of work is done.
 * Work that is over within half a second is not shown.
 */
final class ProgressBar implements ProgressListener {
  private static final int WIDTH = 30;
  private static final long DELAY_NANOS = 500_000_000L;
  private static final long REDRAW_NANOS = 100_000_000L;

  private final PrintWriter err;
  private final boolean terminal;
  private final LongSupplier nanoTime;
  private String current;
  private long startNanos;
  private long startDone;
  private long drawnNanos;
  private boolean drawn;

  /** @param terminal whether {@code err} is a terminal, where a line can be redrawn */
  ProgressBar(PrintWriter err, boolean terminal) {
    this(err, terminal, System::nanoTime);
  }

  ProgressBar(PrintWriter err, boolean terminal, LongSupplier nanoTime) {
    this.err = err;
    this.terminal = terminal;
    this.nanoTime = nanoTime;
  }

  @Override
  public synchronized void progress(String what, long done, long total) {
    long now = nanoTime.getAsLong();
    if (!what.equals(current)) {
      endLine();
      current = what;
      startNanos = now;
      startDone = done;
    }
    boolean complete = total >= 0 && done >= total;
    if (now - startNanos < DELAY_NANOS || !complete && (!terminal || drawn && now - drawnNanos < REDRAW_NANOS)) {
      return;
    }
    double seconds = (now - startNanos) * 1e-9;
    String amount = total < 0 ? Text.bytes(done) : Text.bytes(done) + " of " + Text.bytes(total);
    String rate = Text.bytes((long) ((done - startDone) / seconds)) + "/s";
    if (terminal) {
      int filled = total <= 0 ? 0 : (int) Math.min(WIDTH, WIDTH * done / total);
      String bar = "#".repeat(filled) + ".".repeat(WIDTH - filled);
      err.print("\r\033[K%s [%s] %s, %s".formatted(what, bar, amount, rate));
      drawn = true;
      drawnNanos = now;
      if (complete) {
        endLine();
      }
    } else {
      err.println("%s: %s, %s".formatted(what, amount, rate));
    }
    if (complete) {
      current = null;
    }
    err.flush();
  }

  private void endLine() {
    if (drawn) {
      err.println();
      drawn = false;
    }
  }
}
