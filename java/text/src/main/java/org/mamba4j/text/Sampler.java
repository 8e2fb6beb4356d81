package org.mamba4j.text;

import java.util.Arrays;
import java.util.Objects;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

/**
 * Chooses tokens from logits. Belongs to one sequence and one thread at a time; after the first call it allocates nothing.
 *
 * <p>Reproducible on every machine and JDK: random numbers come from SplitMix64 (Steele, Lea, Flood: "Fast splittable
 * pseudorandom number generators", 2014) started at the seed, the upper 53 bits of one output a token; greedy choices
 * use none. Where two tokens are equally likely, the lower id comes first in every filter.
 */
public final class Sampler {
  private static final int FIRST_TOP_P_GUESS = 64;

  private final SamplingOptions options;
  private final int vocabSize;
  private final float inverseTemperature;
  private final Exponentials exponentials = new Exponentials();
  private final int[] recent; // ring of the last repetitionWindow ids
  private int recentCount;
  private long randomState;
  private float logProb = Float.NaN;

  private float[] scores = new float[0]; // [logits], then per id: penalised
  private int[] chosen = new int[0]; // ids that survive the filters, most likely first
  private float[] weights = new float[0]; // unnormalised probabilities, the most likely token has 1
  private int[] penalisedAt = new int[0]; // per id: the step that penalised it last
  private int step;

  /**
   * @param vocabSize ids from here on, the padding of the model's vocabulary, are never chosen
   */
  public Sampler(SamplingOptions options, int vocabSize) {
    this.options = Objects.requireNonNull(options, "options");
    if (vocabSize < 1) {
      throw new IllegalArgumentException("vocabSize must be at least 1, got " + vocabSize);
    }
    this.vocabSize = vocabSize;
    this.inverseTemperature = Math.min(1 / options.temperature(), Float.MAX_VALUE);
    this.recent = new int[options.repetitionPenalty() == 1 ? 0 : options.repetitionWindow()];
    this.randomState = options.seed();
  }

  /** Makes tokens count as recent for the repetition penalty: those of the prompt. Chosen ones do so by themselves. */
  public void observe(int... ids) {
    for (int i = Math.max(0, ids.length - recent.length); i < ids.length; i++) {
      remember(ids[i]);
    }
  }

  private void remember(int id) {
    if (recent.length > 0) {
      recent[recentCount++ % recent.length] = id;
      if (recentCount == 2 * recent.length) {
        recentCount = recent.length;
      }
    }
  }

  /**
   * Chooses the next token.
   *
   * @param logits f32 [vocab]
   * @throws IllegalArgumentException if the shape or type is another, or a logit is NaN or infinite
   */
  public int next(Tensor logits) {
    if (logits.rank() != 1 || logits.dtype() != DType.F32 || logits.size() < 1 || logits.size() > Integer.MAX_VALUE - 8) {
      throw new IllegalArgumentException("logits must be F32 [vocab], got " + logits);
    }
    prepare((int) logits.size());
    logits.copyTo(scores);
    int candidates = Math.min(scores.length, vocabSize);
    double logSum = logSumExp(candidates);
    penaliseRecent(candidates);
    int id = options.isGreedy() ? argmax(candidates) : draw(candidates);
    logProb = (float) (logits.getFloat(id) - logSum);
    remember(id);
    return id;
  }

  /**
   * Natural logarithm of the probability that the model itself (before penalty, temperature and filters, without padding)
   * gave the token chosen last.
   */
  public float logProb() {
    return logProb;
  }

  private void prepare(int size) {
    if (scores.length != size) {
      scores = new float[size];
      penalisedAt = recent.length > 0 ? new int[size] : penalisedAt;
      weights = new float[size];
      chosen = options.isGreedy() ? chosen : new int[size];
    }
  }

  private double logSumExp(int candidates) {
    for (int i = 0; i < candidates; i++) {
      if (!(Math.abs(scores[i]) <= Float.MAX_VALUE)) {
        throw new IllegalArgumentException("logits[" + i + "] is " + scores[i]
            + ", expected finite numbers: the weights or the state of the sequence are damaged");
      }
    }
    float max = scores[argmax(candidates)];
    return max + Math.log(exponentials.compute(scores, max, 1, candidates, weights));
  }

  private void penaliseRecent(int candidates) {
    float penalty = options.repetitionPenalty();
    step++;
    for (int i = 0; i < Math.min(recentCount, recent.length); i++) {
      int id = recent[i];
      if (id >= 0 && id < candidates && penalisedAt[id] != step) {
        penalisedAt[id] = step;
        float score = scores[id] > 0 ? scores[id] / penalty : scores[id] * penalty;
        scores[id] = Math.clamp(score, -Float.MAX_VALUE, Float.MAX_VALUE);
      }
    }
  }

  private int argmax(int candidates) {
    int best = 0;
    for (int i = 1; i < candidates; i++) {
      if (scores[i] > scores[best]) {
        best = i;
      }
    }
    return best;
  }

  /** All filters keep a prefix of the tokens sorted by likelihood, so the shortest prefix wins. */
  private int draw(int candidates) {
    float max = scores[argmax(candidates)];
    int k = options.topK() == 0 ? candidates : Math.min(options.topK(), candidates);
    if (k == candidates && options.topP() == 1) {
      return drawUnsorted(candidates, max);
    }
    boolean allTokens = k == candidates;
    double total = allTokens ? exponentials.compute(scores, max, inverseTemperature, candidates, weights) : 0;
    for (int size = allTokens ? Math.min(FIRST_TOP_P_GUESS, k) : k; ; size = (int) Math.min(4L * size, k)) {
      selectMostLikely(size, candidates);
      for (int i = 0; i < size; i++) {
        weights[i] = scores[chosen[i]];
      }
      double selected = exponentials.compute(weights, max, inverseTemperature, size, weights);
      double enough = options.topP() * (allTokens ? total : selected);
      int kept = 0;
      double mass = 0;
      while (kept < size && (kept == 0 || mass < enough) && weights[kept] >= options.minP()) {
        mass += weights[kept++];
      }
      if (kept < size || size == k || mass >= enough) {
        return chosen[pick(kept, mass)];
      }
    }
  }

  private int drawUnsorted(int candidates, float max) {
    exponentials.compute(scores, max, inverseTemperature, candidates, weights);
    float minP = options.minP();
    for (int i = 0; i < candidates; i++) {
      weights[i] = weights[i] >= minP ? weights[i] : 0;
    }
    return pick(candidates, Exponentials.sum(weights, candidates));
  }

  private int pick(int count, double mass) {
    double target = nextDouble() * mass;
    int last = 0;
    for (int i = 0; i < count; i++) {
      if (weights[i] > 0) {
        last = i;
        target -= weights[i];
        if (target < 0) {
          return i;
        }
      }
    }
    return last; // rounding left a rest of the mass over
  }

  private double nextDouble() {
    long z = randomState += 0x9E3779B97F4A7C15L;
    z = (z ^ (z >>> 30)) * 0xBF58476D1CE4E5B9L;
    z = (z ^ (z >>> 27)) * 0x94D049BB133111EBL;
    return ((z ^ (z >>> 31)) >>> 11) * 0x1p-53;
  }

  /** Puts the {@code size} most likely ids into {@code chosen}, sorted: a heap whose root is the least likely of them. */
  private void selectMostLikely(int size, int candidates) {
    for (int i = 0; i < size; i++) {
      chosen[i] = i;
    }
    for (int root = size / 2 - 1; root >= 0; root--) {
      siftDown(root, size);
    }
    for (int id = size; id < candidates; id++) {
      if (lessLikely(chosen[0], id)) {
        chosen[0] = id;
        siftDown(0, size);
      }
    }
    for (int end = size - 1; end > 0; end--) {
      int least = chosen[0];
      chosen[0] = chosen[end];
      chosen[end] = least;
      siftDown(0, end);
    }
  }

  private void siftDown(int root, int size) {
    int id = chosen[root];
    for (int child = 2 * root + 1; child < size; child = 2 * root + 1) {
      if (child + 1 < size && lessLikely(chosen[child + 1], chosen[child])) {
        child++;
      }
      if (!lessLikely(chosen[child], id)) {
        break;
      }
      chosen[root] = chosen[child];
      root = child;
    }
    chosen[root] = id;
  }

  private boolean lessLikely(int a, int b) {
    return scores[a] < scores[b] || scores[a] == scores[b] && a > b;
  }

  /** Starts over: forgets recent tokens and returns to the beginning of the random sequence. */
  public void reset() {
    Arrays.fill(recent, 0);
    recentCount = 0;
    randomState = options.seed();
    logProb = Float.NaN;
  }
}
