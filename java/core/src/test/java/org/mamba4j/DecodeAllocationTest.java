package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import com.sun.management.ThreadMXBean;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** A decode step allocates nothing on the Java heap. */
@Timeout(120)
class DecodeAllocationTest {
  private static final ThreadMXBean THREADS = (ThreadMXBean) ManagementFactory.getThreadMXBean();
  private static final long PATIENCE_NANOS = 20_000_000_000L;
  private static final int STEPS = 500;

  @Test
  void aSessionsStepAllocatesNothing() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba1-tied"), ModelOptions.defaults().withThreads(1));
        Session session = model.newSession()) {
      assertEquals(
          0,
          leastBytes(
              token -> {
                session.advance(token);
                return session.logits().getFloat(3L);
              }));
    }
  }

  @Test
  void aBatchsStepAllocatesNothing() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba2-g1"), ModelOptions.defaults().withThreads(1));
        Session a = model.newSession();
        Session b = model.newSession();
        Batch batch = model.newBatch(2)) {
      assertEquals(
          0,
          leastBytes(
              token -> {
                batch.clear();
                batch.add(a, token);
                batch.add(b, 1);
                batch.advance();
                return batch.logits(1).getFloat(3L);
              }));
    }
  }

  @Test
  void choosingTokensAllocatesNothing() throws IOException {
    SamplingOptions options = SamplingOptions.random(1, 7).withTopK(40).withTopP(0.9f).withRepetitionPenalty(1.2f);
    try (Model model = Model.load(TestData.golden("mamba2-g1"), ModelOptions.defaults().withThreads(1));
        Session alone = model.newSession();
        Session a = model.newSession();
        Session b = model.newSession();
        Batch batch = model.newBatch(2)) {
      Sampler first = new Sampler(options, 256);
      Sampler second = new Sampler(options, 256);
      assertEquals(0, leastBytes(token -> alone.next(first, token)));
      assertEquals(
          0,
          leastBytes(
              token -> {
                batch.clear();
                batch.add(a, first, token);
                batch.add(b, second, 1);
                batch.next();
                return batch.token(1);
              }));
    }
  }

  private interface Step {
    float run(int token);
  }

  /** Bytes that {@link #STEPS} steps allocate once the compiler is done with them: the least over all rounds. */
  private static long leastBytes(Step step) {
    long least = Long.MAX_VALUE;
    float sum = 0;
    long start = System.nanoTime();
    while (least > 0 && System.nanoTime() - start < PATIENCE_NANOS) {
      long before = THREADS.getCurrentThreadAllocatedBytes();
      for (int i = 0; i < STEPS; i++) {
        sum += step.run(i % 256);
      }
      least = Math.min(least, THREADS.getCurrentThreadAllocatedBytes() - before);
    }
    assertFalse(Float.isNaN(sum), "logits are numbers");
    return least;
  }
}
