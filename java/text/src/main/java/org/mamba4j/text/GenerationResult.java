package org.mamba4j.text;

import java.time.Duration;
import java.util.Arrays;

/**
 * A finished generation.
 *
 * @param promptTokens ids of the prompt as fed to the model, special tokens included
 * @param tokens new ids, a final stop token included
 * @param text decoded new tokens without special tokens, ending before a stop string; empty if the model has no tokenizer
 * @param finishReason why it ended
 * @param timeToFirstToken from feeding the prompt to the first new token; zero if there is none
 * @param decodeTokensPerSecond new tokens after the first one per second of computing them; 0 with fewer than two
 */
public record GenerationResult(
    int[] promptTokens,
    int[] tokens,
    String text,
    FinishReason finishReason,
    Duration timeToFirstToken,
    double decodeTokensPerSecond) {

  @Override
  public boolean equals(Object other) {
    return other instanceof GenerationResult that
        && Arrays.equals(promptTokens, that.promptTokens)
        && Arrays.equals(tokens, that.tokens)
        && text.equals(that.text)
        && finishReason == that.finishReason
        && timeToFirstToken.equals(that.timeToFirstToken)
        && decodeTokensPerSecond == that.decodeTokensPerSecond;
  }

  @Override
  public int hashCode() {
    return 31 * Arrays.hashCode(promptTokens) + Arrays.hashCode(tokens);
  }

  @Override
  public String toString() {
    return "GenerationResult[" + promptTokens.length + " prompt tokens, " + tokens.length + " tokens, " + finishReason
        + ", text=" + text + "]";
  }
}
