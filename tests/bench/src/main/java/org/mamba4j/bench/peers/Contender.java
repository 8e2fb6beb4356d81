package org.mamba4j.bench.peers;

/** A library with one model loaded, ready for a sequence. Used by one thread. */
interface Contender extends AutoCloseable {
  /** Seconds from handing over a prompt of {@code tokens} tokens to knowing the token that follows. */
  double prompt(int tokens);

  /** Seconds that generating {@code tokens} tokens one by one takes, after a short prompt. */
  double decode(int tokens);

  /**
   * The continuation of {@code prompt} by the most probable token each time.
   *
   * @throws UnsupportedOperationException if the library takes text only
   */
  int[] greedy(int[] prompt, int tokens);

  @Override
  void close();
}
