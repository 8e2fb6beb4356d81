package org.mamba4j.cli;

import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.function.Consumer;
import org.mamba4j.Engine;
import org.mamba4j.SamplingOptions;
import org.mamba4j.text.Cancellation;
import org.mamba4j.text.GeneratedToken;
import org.mamba4j.text.GenerationOptions;
import org.mamba4j.text.GenerationResult;
import org.mamba4j.text.TextModel;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;

@Command(
    name = "generate",
    description = {
      "Continues a text.",
      "The text streams to standard output as it comes, figures follow on standard error. Ctrl-C ends it."
    },
    footer = {
      "",
      "With --json one object is printed instead, at the end:",
      "  tokens          ids of the new tokens",
      "  text            the new text; empty where the model has no tokenizer",
      "  finish_reason   stop_token, stop_string, length or cancelled",
      "  ttft_ms         time to first token, reading the prompt included",
      "  decode_tok_s    tokens per second after the first; null with fewer than two",
      "",
      "Examples:",
      "  mamba4j generate --model tests/models/mamba2-java-9m --prompt 'public class Point {'",
      "  mamba4j generate --model state-spaces/mamba-130m-hf --prompt 'A whale is' \\",
      "      --temperature 0.8 --top-p 0.95 --seed 7 --stop $'\\n\\n'",
      "  cat Start.java | mamba4j generate --model tests/models/mamba2-java-9m --prompt-file -",
      "  mamba4j generate --model tests/goldens/mamba1-tied --ids 1,2,3 --max-new-tokens 5 --json"
    })
final class GenerateCommand extends CliCommand {
  @Mixin LoadOptions model;

  @ArgGroup(exclusive = true, multiplicity = "1")
  Prompt prompt;

  @Option(names = "--max-new-tokens", paramLabel = "N", defaultValue = "128", description = "Most tokens to generate.")
  int maxNewTokens;

  @Option(
      names = "--temperature",
      paramLabel = "T",
      defaultValue = "0",
      description = "0 always takes the likeliest token; higher values take others more often.")
  float temperature;

  @Option(
      names = "--top-k",
      paramLabel = "K",
      defaultValue = "0",
      description = "Choose among the K likeliest tokens; 0: all.")
  int topK;

  @Option(
      names = "--top-p",
      paramLabel = "P",
      defaultValue = "1",
      description = "Choose among the likeliest tokens that together have probability P.")
  float topP;

  @Option(
      names = "--min-p",
      paramLabel = "P",
      defaultValue = "0",
      description = "Choose among tokens with at least P times the probability of the likeliest.")
  float minP;

  @Option(
      names = "--repetition-penalty",
      paramLabel = "R",
      defaultValue = "1",
      description = "Above 1, tokens that occurred become less likely.")
  float repetitionPenalty;

  @Option(names = "--seed", paramLabel = "S", defaultValue = "0", description = "Same seed, same text.")
  long seed;

  @Option(
      names = "--stop",
      paramLabel = "TEXT",
      description = "End before this text; may be given several times.")
  List<String> stop;

  @Option(
      names = "--ignore-eos",
      defaultValue = "false",
      description = "Go on after the model's end token, as comparisons of tokens want it.")
  boolean ignoreEos;

  @Option(names = "--json", description = "Print one JSON object at the end.", defaultValue = "false")
  boolean json;

  @Mixin DeviceOptions device;

  @Override
  public Integer call() throws IOException {
    Cancellation cancellation = new Cancellation();
    GenerationOptions options = options().withCancellation(cancellation);
    try (Interrupt interrupt = new Interrupt(cancellation::cancel);
        Engine engine = Engine.create(device.engineOptions());
        TextModel loaded = model.loadText(engine)) {
      GenerationResult result = generate(loaded, options, json ? token -> {} : token -> stream(token, cancellation));
      if (json) {
        printJson(result);
      } else {
        out().println();
        out().flush();
        err().println(summary(result));
      }
      out().flush();
      err().flush();
    }
    return 0;
  }

  private GenerationOptions options() {
    try {
      GenerationOptions options = GenerationOptions.defaults();
      return (ignoreEos ? options.withStopTokens() : options)
          .withMaxNewTokens(maxNewTokens)
          .withStopStrings(stop == null ? new String[0] : stop.toArray(String[]::new))
          .withSampling(
              SamplingOptions.greedy()
                  .withTemperature(temperature)
                  .withTopK(topK)
                  .withTopP(topP)
                  .withMinP(minP)
                  .withRepetitionPenalty(repetitionPenalty)
                  .withSeed(seed));
    } catch (IllegalArgumentException e) {
      throw new ParameterException(spec.commandLine(), e.getMessage());
    }
  }

  private GenerationResult generate(TextModel loaded, GenerationOptions options, Consumer<GeneratedToken> listener)
      throws IOException {
    return prompt.ids() == null
        ? loaded.generate(prompt.text(), options, listener)
        : loaded.generate(prompt.ids(), options, listener);
  }

  private void stream(GeneratedToken token, Cancellation cancellation) {
    out().print(token.text());
    if (out().checkError()) { // flushes; nobody reads any more
      cancellation.cancel();
    }
  }

  private void printJson(GenerationResult result) throws IOException {
    Map<String, Object> object = new LinkedHashMap<>();
    object.put("tokens", result.tokens());
    object.put("text", result.text());
    object.put("finish_reason", result.finishReason().name().toLowerCase(Locale.ROOT));
    object.put("ttft_ms", milliseconds(result));
    object.put("decode_tok_s", result.tokens().length < 2 ? null : Json.number(result.decodeTokensPerSecond()));
    Json.print(out(), object);
  }

  private static String summary(GenerationResult result) {
    String rate =
        result.tokens().length < 2 ? "" : String.format(Locale.ROOT, ", %.0f tokens/s", result.decodeTokensPerSecond());
    return String.format(
        Locale.ROOT,
        "[%d tokens%s, first token after %.1f ms (%d prompt tokens), ended by %s]",
        result.tokens().length,
        rate,
        milliseconds(result),
        result.promptTokens().length,
        result.finishReason().name().toLowerCase(Locale.ROOT).replace('_', ' '));
  }

  private static double milliseconds(GenerationResult result) {
    return result.timeToFirstToken().toNanos() * 1e-6;
  }
}
