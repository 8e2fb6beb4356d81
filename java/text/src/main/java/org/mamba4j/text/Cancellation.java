package org.mamba4j.text;

/** Ends a generation from outside: give it to {@link GenerationOptions}, call {@link #cancel} from any thread. */
public final class Cancellation {
  private volatile boolean cancelled;

  /** Asks the generation to stop before the next token or the next part of the prompt. Cannot be undone. */
  public void cancel() {
    cancelled = true;
  }

  public boolean isCancelled() {
    return cancelled;
  }
}
