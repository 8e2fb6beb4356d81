package org.mamba4j;

import static java.lang.foreign.ValueLayout.JAVA_INT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicBoolean;
import org.mamba4j.ffi.m4j_sampling;

/**
 * How the tokens of one sequence are chosen: options, the tokens that count as recent, and the number of draws so far.
 * {@link Session#next} and {@link Batch#next} choose where the logits are computed, {@link Ops#sample} from any logits.
 * Belongs to one sequence and one thread at a time.
 *
 * <p>Reproducible: weights are added as integers, and the random number of a token is Philox 4x32-10 (Salmon et al.:
 * "Parallel random numbers: as easy as 1, 2, 3", 2011) of the seed and the number of the draw. So equal logits give
 * equal tokens on every processor and GPU, alone and in any batch.
 */
public final class Sampler {
  private final MemorySegment struct; // m4j_sampling
  private final MemorySegment recent; // int32 ring of the last repetitionWindow ids
  private final int window;
  private final AtomicBoolean inUse = new AtomicBoolean();
  private int recentCount;
  private long draw;
  private float logProb = Float.NaN;

  /**
   * @param vocabSize ids from here on, the padding of the model's vocabulary, are never chosen
   */
  public Sampler(SamplingOptions options, int vocabSize) {
    Objects.requireNonNull(options, "options");
    if (vocabSize < 1) {
      throw new IllegalArgumentException("vocabSize must be at least 1, got " + vocabSize);
    }
    Arena arena = Arena.ofAuto();
    this.window = options.repetitionPenalty() == 1 ? 0 : options.repetitionWindow();
    this.recent = arena.allocate(JAVA_INT, Math.max(1, window));
    this.struct = m4j_sampling.allocate(arena);
    m4j_sampling.struct_size(struct, m4j_sampling.sizeof());
    m4j_sampling.candidates(struct, vocabSize);
    m4j_sampling.seed(struct, options.seed());
    m4j_sampling.temperature(struct, options.temperature());
    m4j_sampling.top_k(struct, options.topK());
    m4j_sampling.top_p(struct, options.topP());
    m4j_sampling.min_p(struct, options.minP());
    m4j_sampling.repetition_penalty(struct, options.repetitionPenalty());
    m4j_sampling.recent(struct, recent);
  }

  /** Makes tokens count as recent for the repetition penalty: those of the prompt. Chosen ones do so by themselves. */
  public void observe(int... ids) {
    checkFree();
    for (int i = Math.max(0, ids.length - window); i < ids.length; i++) {
      remember(ids[i]);
    }
  }

  private void remember(int id) {
    if (window > 0) {
      recent.setAtIndex(JAVA_INT, recentCount++ % window, id);
      if (recentCount >= 2 * window) {
        recentCount = window;
      }
    }
  }

  /**
   * Natural logarithm of the probability that the model itself (before penalty, temperature and filters, without padding)
   * gave the token chosen last; NaN before the first.
   */
  public float logProb() {
    return logProb;
  }

  /** Starts over: forgets recent tokens and returns to the beginning of the random sequence. */
  public void reset() {
    checkFree();
    recentCount = 0;
    draw = 0;
    logProb = Float.NaN;
  }

  private void checkFree() {
    if (inUse.get()) {
      throw busy();
    }
  }

  private static IllegalStateException busy() {
    return new IllegalStateException("the sampler is in use by another call; it belongs to one sequence");
  }

  /**
   * The m4j_sampling of the next token, whose memory lives as long as this is reachable. Until {@link #release} the
   * sampler is in use.
   */
  MemorySegment prepare() {
    if (!inUse.compareAndSet(false, true)) {
      throw busy();
    }
    m4j_sampling.draw(struct, draw);
    m4j_sampling.n_recent(struct, Math.min(recentCount, window));
    return struct;
  }

  void release() {
    inUse.set(false);
  }

  /** Takes note of the token that was chosen, which is a valid one. */
  void chosen(int token, float logProb) {
    this.logProb = logProb;
    draw++;
    remember(token);
  }
}
