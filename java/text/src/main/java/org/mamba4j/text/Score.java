package org.mamba4j.text;

import java.util.Arrays;

/**
 * How likely a model finds a text.
 *
 * @param tokens n ids, special tokens included
 * @param logProbs n - 1 natural logarithms: entry i is the probability of {@code tokens[i + 1]} after the tokens before it
 */
public record Score(int[] tokens, float[] logProbs) {

  /** Sum of {@link #logProbs}. */
  public double totalLogProb() {
    double sum = 0;
    for (float logProb : logProbs) {
      sum += logProb;
    }
    return sum;
  }

  /** exp of the negative mean of {@link #logProbs}: 1 is certainty, the vocabulary size is guessing. */
  public double perplexity() {
    return Math.exp(-totalLogProb() / logProbs.length);
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Score that && Arrays.equals(tokens, that.tokens) && Arrays.equals(logProbs, that.logProbs);
  }

  @Override
  public int hashCode() {
    return 31 * Arrays.hashCode(tokens) + Arrays.hashCode(logProbs);
  }

  @Override
  public String toString() {
    return "Score[" + tokens.length + " tokens, perplexity " + perplexity() + "]";
  }
}
