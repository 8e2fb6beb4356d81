package org.mamba4j.checkpoint;

import java.io.IOException;
import java.nio.file.Path;

/**
 * A checkpoint cannot be used: the message names the file, the tensor where there is one, what was expected and found.
 */
public class CheckpointException extends IOException {
  private static final int MAX_QUOTED = 120;

  /** With a complete sentence. */
  public CheckpointException(String message) {
    super(message);
  }

  /** With a complete sentence and what led to it. */
  public CheckpointException(String message, Throwable cause) {
    super(message, cause);
  }

  static CheckpointException in(Path file, String problem) {
    return new CheckpointException(file + ": " + problem);
  }

  static CheckpointException mismatch(Path file, String what, Object expected, Object found) {
    return in(file, what + ": expected " + expected + ", found " + found);
  }

  static CheckpointException tensor(Path file, String tensor, Object expected, Object found) {
    return mismatch(file, "tensor " + quote(tensor), expected, found);
  }

  /** Text from a file made fit for a message: bounded, on one line, without control characters. */
  static String quote(String text) {
    var out = new StringBuilder("'");
    for (int i = 0; i < text.length() && i < MAX_QUOTED; i++) {
      char c = text.charAt(i);
      out.append(Character.isISOControl(c) || Character.isSurrogate(c) ? '?' : c);
    }
    return out.append(text.length() > MAX_QUOTED ? "...'" : "'").toString();
  }
}
