package org.mamba4j.bench.peers;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import java.lang.foreign.MemorySegment;
import java.util.stream.IntStream;

/** A library that takes token ids and gives logits: the work is then the same to the token. */
abstract class TokenContender implements Contender {
  /** What decoding starts from. */
  private static final int SHORT_PROMPT = 8;

  /** Begins a new sequence. */
  abstract void reset();

  /** Feeds tokens; returns the logits after the last one, F32 [vocabulary]. */
  abstract MemorySegment feed(int... tokens);

  @Override
  public double prompt(int tokens) {
    int[] ids = promptIds(tokens);
    long start = System.nanoTime();
    reset();
    best(feed(ids));
    return secondsSince(start);
  }

  @Override
  public double decode(int tokens) {
    reset();
    int token = best(feed(promptIds(SHORT_PROMPT)));
    long start = System.nanoTime();
    for (int i = 0; i < tokens; i++) {
      token = best(feed(token));
    }
    return secondsSince(start);
  }

  @Override
  public int[] greedy(int[] prompt, int tokens) {
    reset();
    int[] continuation = new int[tokens];
    for (int i = 0; i < tokens; i++) {
      continuation[i] = best(i == 0 ? feed(prompt) : feed(continuation[i - 1]));
    }
    return continuation;
  }

  /** The ids that the tokenizer of the benchmark's models makes of {@link JavaLlama#promptText}. */
  static int[] promptIds(int tokens) {
    return IntStream.range(0, tokens).map(i -> JavaLlama.letter(i) + 1).toArray();
  }

  static double secondsSince(long start) {
    return (System.nanoTime() - start) * 1e-9;
  }

  private static int best(MemorySegment logits) {
    int count = (int) (logits.byteSize() / Float.BYTES);
    int best = 0;
    float highest = Float.NEGATIVE_INFINITY;
    for (int i = 0; i < count; i++) {
      float value = logits.getAtIndex(JAVA_FLOAT, i);
      if (value > highest) {
        highest = value;
        best = i;
      }
    }
    return best;
  }
}
