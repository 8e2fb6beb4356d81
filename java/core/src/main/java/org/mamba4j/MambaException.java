package org.mamba4j;

/**
 * The native library failed for a reason that is neither a wrong argument nor a wrong state: it could not be loaded,
 * ran out of memory or met a defect of its own. The message says what happened and what to do.
 */
public final class MambaException extends RuntimeException {
  private static final long serialVersionUID = 1;

  public MambaException(String message) {
    super(message);
  }

  public MambaException(String message, Throwable cause) {
    super(message, cause);
  }
}
