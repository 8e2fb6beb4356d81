package org.mamba4j.cli;

import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.mamba4j.Engine;
import org.mamba4j.WeightType;
import org.mamba4j.text.Comparison;
import org.mamba4j.text.Score;
import org.mamba4j.text.TextModel;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

@Command(
    name = "score",
    description = "Says how likely a model finds a text: the log-probability of each token, and the perplexity.",
    footer = {
      "",
      "Each token is scored given those before it, so the first one has no score. Perplexity is the exponential of the",
      "negative mean: 1 means certain of every token, the size of the vocabulary means guessing.",
      "",
      "With --json: tokens, logprobs (one fewer), total_logprob, perplexity.",
      "",
      "--against compares with the same model in other weights: the perplexity of both, and the Kullback-Leibler",
      "divergence of each prediction from theirs, in nats. With --json: tokens (how many), weights, perplexity, against,",
      "against_perplexity, kl_mean, kl_p99.",
      "",
      "Examples:",
      "  mamba4j score --model tests/models/mamba2-java-9m --prompt 'for (int i = 0; i < n; i++) {'",
      "  mamba4j score --model tests/models/mamba2-java-9m --prompt-file Main.java --json",
      "  mamba4j score --model tests/models/mamba2-java-9m --weights int8 --against f32 --prompt-file Main.java"
    })
final class ScoreCommand extends CliCommand {
  @Mixin LoadOptions model;

  @ArgGroup(exclusive = true, multiplicity = "1")
  Prompt prompt;

  @Option(
      names = "--against",
      paramLabel = "TYPE",
      description = "Compare with these weights: ${COMPLETION-CANDIDATES}. Both are held in memory.")
  WeightType against;

  @Option(names = "--json", description = "Print one JSON object.", defaultValue = "false")
  boolean json;

  @Mixin DeviceOptions device;

  @Override
  public Integer call() throws IOException {
    try (Engine engine = Engine.create(device.engineOptions());
        TextModel loaded = model.loadText(engine)) {
      int[] ids = prompt.ids() == null ? loaded.tokenizer().encode(prompt.text()) : prompt.ids();
      if (against != null) {
        try (TextModel reference = model.loadText(engine, against)) {
          printComparison(loaded.compare(ids, reference));
        }
        return 0;
      }
      Score score = loaded.score(ids);
      if (json) {
        printJson(score);
      } else {
        printTable(score, loaded);
      }
    }
    return 0;
  }

  private void printJson(Score score) throws IOException {
    Map<String, Object> object = new LinkedHashMap<>();
    object.put("tokens", score.tokens());
    List<Float> logProbs = new ArrayList<>();
    for (float logProb : score.logProbs()) {
      logProbs.add(Json.number(logProb));
    }
    object.put("logprobs", logProbs);
    object.put("total_logprob", Json.number(score.totalLogProb()));
    object.put("perplexity", Json.number(score.perplexity()));
    Json.print(out(), object);
  }

  private void printComparison(Comparison comparison) throws IOException {
    double perplexity = comparison.score().perplexity();
    double referencePerplexity = comparison.reference().perplexity();
    double mean = comparison.meanDivergence();
    double high = comparison.divergenceQuantile(0.99);
    int count = comparison.divergences().length;
    if (json) {
      Map<String, Object> object = new LinkedHashMap<>();
      object.put("tokens", count + 1);
      object.put("weights", name(model.weights));
      object.put("perplexity", Json.number(perplexity));
      object.put("against", name(against));
      object.put("against_perplexity", Json.number(referencePerplexity));
      object.put("kl_mean", Json.number(mean));
      object.put("kl_p99", Json.number(high));
      Json.print(out(), object);
      return;
    }
    out().printf(Locale.ROOT, "%-8s perplexity %.4f over %d tokens%n", name(model.weights), perplexity, count);
    out().printf(Locale.ROOT, "%-8s perplexity %.4f%n", name(against), referencePerplexity);
    out().printf(Locale.ROOT, "%-8s mean %.3g, 99th percentile %.3g nats a token%n", "KL", mean, high);
  }

  private static String name(WeightType type) {
    return type.name().toLowerCase(Locale.ROOT);
  }

  private void printTable(Score score, TextModel loaded) {
    out().printf("%8s %9s  %s%n", "token", "log-prob", "text");
    for (int i = 0; i < score.tokens().length; i++) {
      int id = score.tokens()[i];
      String logProb = i == 0 ? "" : String.format(Locale.ROOT, "%.4f", score.logProbs()[i - 1]);
      String text = loaded.hasTokenizer() ? visible(loaded.tokenizer().decode(new int[] {id})) : "";
      out().printf("%8d %9s  %s%n", id, logProb, text);
    }
    out().printf(Locale.ROOT, "%nperplexity %.3f over %d tokens%n", score.perplexity(), score.logProbs().length);
  }

  /** On one line. */
  private static String visible(String text) {
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t");
  }
}
