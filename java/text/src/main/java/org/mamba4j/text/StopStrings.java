package org.mamba4j.text;

import java.util.List;

/**
 * Cuts a text that arrives in pieces before the stop string that is complete first (the longest of those that end there),
 * however the text is split, and holds back what may be the beginning of one.
 */
final class StopStrings {
  private final List<String> stops;
  private final StringBuilder held = new StringBuilder();
  private boolean found;

  StopStrings(List<String> stops) {
    this.stops = stops;
  }

  boolean found() {
    return found;
  }

  /** Takes the next piece, returns what can be shown now. Nothing more comes once a stop string was found. */
  String accept(String piece) {
    if (stops.isEmpty() || found) {
      return found ? "" : piece;
    }
    held.append(piece);
    int start = 0;
    int end = Integer.MAX_VALUE;
    for (String stop : stops) {
      int at = held.indexOf(stop);
      int stopEnd = at + stop.length();
      if (at >= 0 && (stopEnd < end || stopEnd == end && at < start)) {
        start = at;
        end = stopEnd;
      }
    }
    if (end < Integer.MAX_VALUE) {
      found = true;
      return release(start);
    }
    int safe = held.length();
    for (String stop : stops) {
      safe = Math.min(safe, possibleStart(stop));
    }
    return release(safe);
  }

  /** The rest, when no more text comes. */
  String flush() {
    return found ? "" : release(held.length());
  }

  /** Where a suffix of the held text begins that is a prefix of {@code stop}; its length if there is none. */
  private int possibleStart(String stop) {
    for (int start = Math.max(0, held.length() - stop.length() + 1); start < held.length(); start++) {
      int length = held.length() - start;
      int same = 0;
      while (same < length && held.charAt(start + same) == stop.charAt(same)) {
        same++;
      }
      if (same == length) {
        return start;
      }
    }
    return held.length();
  }

  private String release(int length) {
    String text = held.substring(0, length);
    held.delete(0, length);
    return text;
  }
}
