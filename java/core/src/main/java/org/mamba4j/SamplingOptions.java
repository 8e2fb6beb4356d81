package org.mamba4j;

/**
 * How the next token is chosen. Immutable; {@code with} methods return changed copies.
 *
 * <p>Applied in this order: repetition penalty, then, unless greedy, temperature, top-k, top-p, min-p, and one draw from
 * what is left.
 *
 * @param temperature logits are divided by it; 0 takes the most likely token (greedy), the lowest id among equals
 * @param topK keep the k most likely tokens; 0 keeps all
 * @param topP keep the smallest set of most likely tokens whose probabilities sum to at least this; 1 keeps all
 * @param minP keep tokens at least this fraction as likely as the most likely one; 0 keeps all
 * @param repetitionPenalty positive logits of recent tokens are divided by it, negative ones multiplied; 1 is neutral
 * @param repetitionWindow how many of the last tokens, prompt included, count as recent
 * @param seed start of the random sequence; equal seeds and logits give equal tokens, see {@link Sampler}
 */
public record SamplingOptions(
    float temperature, int topK, float topP, float minP, float repetitionPenalty, int repetitionWindow, long seed) {

  public SamplingOptions {
    require(temperature >= 0 && temperature < Float.POSITIVE_INFINITY, "temperature", "at least 0", temperature);
    require(topK >= 0, "topK", "at least 0", topK);
    require(topP > 0 && topP <= 1, "topP", "above 0 and at most 1", topP);
    require(minP >= 0 && minP <= 1, "minP", "0 to 1", minP);
    require(repetitionPenalty > 0 && repetitionPenalty < Float.POSITIVE_INFINITY,
        "repetitionPenalty", "above 0", repetitionPenalty);
    require(repetitionWindow >= 0 && repetitionWindow <= 1 << 20, "repetitionWindow", "0 to 1048576", repetitionWindow);
  }

  private static void require(boolean holds, String name, String expected, Number found) {
    if (!holds) {
      throw new IllegalArgumentException(name + " must be " + expected + ", got " + found);
    }
  }

  /** Always the most likely token. */
  public static SamplingOptions greedy() {
    return new SamplingOptions(0, 0, 1, 0, 1, 64, 0);
  }

  /** Draws from the model's own distribution, unfiltered, at the given temperature. */
  public static SamplingOptions random(float temperature, long seed) {
    return greedy().withTemperature(temperature).withSeed(seed);
  }

  public boolean isGreedy() {
    return temperature == 0;
  }

  public SamplingOptions withTemperature(float value) {
    return new SamplingOptions(value, topK, topP, minP, repetitionPenalty, repetitionWindow, seed);
  }

  public SamplingOptions withTopK(int value) {
    return new SamplingOptions(temperature, value, topP, minP, repetitionPenalty, repetitionWindow, seed);
  }

  public SamplingOptions withTopP(float value) {
    return new SamplingOptions(temperature, topK, value, minP, repetitionPenalty, repetitionWindow, seed);
  }

  public SamplingOptions withMinP(float value) {
    return new SamplingOptions(temperature, topK, topP, value, repetitionPenalty, repetitionWindow, seed);
  }

  public SamplingOptions withRepetitionPenalty(float value) {
    return new SamplingOptions(temperature, topK, topP, minP, value, repetitionWindow, seed);
  }

  public SamplingOptions withRepetitionWindow(int value) {
    return new SamplingOptions(temperature, topK, topP, minP, repetitionPenalty, value, seed);
  }

  public SamplingOptions withSeed(long value) {
    return new SamplingOptions(temperature, topK, topP, minP, repetitionPenalty, repetitionWindow, value);
  }
}
