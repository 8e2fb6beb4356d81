package org.mamba4j.text;

import java.util.Arrays;

/**
 * Turns tokens into text one at a time without ever showing half a character: what a token adds is held back while it
 * ends in U+FFFD, the sign of bytes that are not a character yet. A token costs the same whatever came before, because
 * only the last few tokens are decoded again: the ones not shown yet and, as context, those shown last. For one thread at
 * a time.
 */
public final class StreamDecoder {
  private static final char REPLACEMENT = '\uFFFD';

  /** An incomplete character has at most three bytes, so at most three tokens; genuine U+FFFDs may wait longer. */
  private static final int MAX_WINDOW = 24;
  private static final int CONTEXT = 8;
  private static final int MAX_INCOMPLETE = 3;

  private final Tokenizer tokenizer;
  private final int[] window = new int[MAX_WINDOW]; // context, then tokens not shown completely
  private int size;
  private int context;
  private String shown; // the part of the window's text that was returned, or belongs to the context

  StreamDecoder(Tokenizer tokenizer, int[] before) {
    this.tokenizer = tokenizer;
    int[] recent = Arrays.stream(before).filter(tokenizer::hasText).toArray();
    size = Math.min(CONTEXT, recent.length);
    System.arraycopy(recent, recent.length - size, window, 0, size);
    shown = tokenizer.decode(window, 0, size);
    if (endsIncomplete(shown)) {
      size = 0;
      shown = "";
    }
    context = size;
  }

  /** The text that becomes complete with this token; empty if none does. */
  public String next(int id) {
    if (!tokenizer.hasText(id)) {
      return "";
    }
    window[size++] = id;
    String text = tokenizer.decode(window, 0, size);
    int complete = text.length();
    while (complete > 0 && text.charAt(complete - 1) == REPLACEMENT) {
      complete--;
    }
    if (complete == text.length()) {
      String fresh = beyondShown(text);
      if (!fresh.isEmpty() || size == MAX_WINDOW) {
        keepAsContext(size == MAX_WINDOW ? Math.max(context, size - CONTEXT) : context);
      }
      return fresh;
    }
    if (size == MAX_WINDOW) {
      return giveUp(text);
    }
    // A tokenizer that falls back on bytes shows a whole run of them as U+FFFD until its end is complete.
    String stable = text.substring(0, complete);
    if (!stable.startsWith(shown)) {
      return "";
    }
    String fresh = beyondShown(stable);
    shown = stable;
    return fresh;
  }

  /** What was held back, bytes of an incomplete character as U+FFFD. The next token begins a new text. */
  public String flush() {
    String rest = beyondShown(tokenizer.decode(window, 0, size));
    size = 0;
    context = 0;
    shown = "";
    return rest;
  }

  private String beyondShown(String text) {
    return text.substring(Math.min(shown.length(), text.length()));
  }

  private void keepAsContext(int from) {
    size -= from;
    System.arraycopy(window, from, window, 0, size);
    context = size;
    shown = tokenizer.decode(window, 0, size);
  }

  /** Too many U+FFFDs for one character: they are genuine, except possibly the last. */
  private String giveUp(String text) {
    String fresh = beyondShown(text.substring(0, text.length() - 1));
    keepAsContext(size - MAX_INCOMPLETE);
    context = 0;
    shown = shown.isEmpty() ? "" : shown.substring(0, shown.length() - 1);
    return fresh;
  }

  private static boolean endsIncomplete(String text) {
    return !text.isEmpty() && text.charAt(text.length() - 1) == REPLACEMENT;
  }
}
