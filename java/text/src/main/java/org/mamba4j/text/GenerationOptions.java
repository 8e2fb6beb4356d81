package org.mamba4j.text;

import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.stream.Collectors;
import org.mamba4j.SamplingOptions;

/**
 * What to generate and when to stop. Immutable; {@code with} methods return changed copies.
 *
 * @param maxNewTokens most new tokens, at least 1
 * @param sampling how tokens are chosen
 * @param stopStrings texts that end the generation; they are not part of the result, whatever tokens they span
 * @param stopTokens ids that end the generation; null: the end-of-text tokens that config.json, generation_config.json
 *     and the tokenizer name; an empty set: none
 * @param cancellation ends the generation from another thread
 */
public record GenerationOptions(
    int maxNewTokens,
    SamplingOptions sampling,
    List<String> stopStrings,
    Set<Integer> stopTokens,
    Cancellation cancellation) {

  public GenerationOptions {
    if (maxNewTokens < 1) {
      throw new IllegalArgumentException("maxNewTokens must be at least 1, got " + maxNewTokens);
    }
    Objects.requireNonNull(sampling, "sampling");
    Objects.requireNonNull(cancellation, "cancellation");
    stopStrings = List.copyOf(stopStrings);
    if (stopStrings.contains("")) {
      throw new IllegalArgumentException("stopStrings must not contain the empty string: it would stop at once");
    }
    stopTokens = stopTokens == null ? null : Set.copyOf(stopTokens);
  }

  /** Greedy, at most 256 tokens, stopping where the model ends its text. */
  public static GenerationOptions defaults() {
    return new GenerationOptions(256, SamplingOptions.greedy(), List.of(), null, new Cancellation());
  }

  public GenerationOptions withMaxNewTokens(int value) {
    return new GenerationOptions(value, sampling, stopStrings, stopTokens, cancellation);
  }

  public GenerationOptions withSampling(SamplingOptions value) {
    return new GenerationOptions(maxNewTokens, value, stopStrings, stopTokens, cancellation);
  }

  public GenerationOptions withStopStrings(String... values) {
    return new GenerationOptions(maxNewTokens, sampling, List.of(values), stopTokens, cancellation);
  }

  /** Replaces the model's own stop tokens; without arguments nothing but length and stop strings ends the text. */
  public GenerationOptions withStopTokens(int... ids) {
    Set<Integer> set = Arrays.stream(ids).boxed().collect(Collectors.toUnmodifiableSet());
    return new GenerationOptions(maxNewTokens, sampling, stopStrings, set, cancellation);
  }

  public GenerationOptions withCancellation(Cancellation value) {
    return new GenerationOptions(maxNewTokens, sampling, stopStrings, stopTokens, value);
  }
}
