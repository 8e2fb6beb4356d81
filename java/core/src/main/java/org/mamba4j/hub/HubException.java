package org.mamba4j.hub;

import java.io.IOException;

/**
 * The hub, or what it sent, refuses a download: no access, no such repository, a wrong checksum, a hostile name. Trying
 * again does not help; the message says what does.
 */
public final class HubException extends IOException {
  private static final long serialVersionUID = 1L;

  public HubException(String message) {
    super(message);
  }

  public HubException(String message, Throwable cause) {
    super(message, cause);
  }
}
