package org.mamba4j.text;

import java.util.Arrays;

/**
 * How far the predictions of a model are from those of another one, such as the same model with exact weights.
 *
 * @param score what the model makes of the text
 * @param reference what the other one makes of it
 * @param divergences n - 1 Kullback-Leibler divergences KL(reference || model), in nats: entry i is that of the
 *     distributions of {@code tokens[i + 1]} over the vocabulary
 */
public record Comparison(Score score, Score reference, double[] divergences) {

  /** Mean of {@link #divergences}. */
  public double meanDivergence() {
    return Arrays.stream(divergences).average().orElseThrow();
  }

  /** The smallest divergence that {@code fraction}, above 0 and up to 1, of all do not exceed. */
  public double divergenceQuantile(double fraction) {
    if (!(fraction > 0 && fraction <= 1)) {
      throw new IllegalArgumentException("fraction: above 0 and up to 1 expected, found " + fraction);
    }
    double[] sorted = divergences.clone();
    Arrays.sort(sorted);
    return sorted[(int) Math.ceil(fraction * sorted.length) - 1];
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Comparison that
        && score.equals(that.score)
        && reference.equals(that.reference)
        && Arrays.equals(divergences, that.divergences);
  }

  @Override
  public int hashCode() {
    return 31 * (31 * score.hashCode() + reference.hashCode()) + Arrays.hashCode(divergences);
  }

  @Override
  public String toString() {
    return "Comparison[%s against %s, mean divergence %s]".formatted(score, reference, meanDivergence());
  }
}
