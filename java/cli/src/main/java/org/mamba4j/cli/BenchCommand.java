package org.mamba4j.cli;

import java.io.IOException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.stream.IntStream;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.Session;
import org.mamba4j.Tensor;
import org.mamba4j.WeightType;
import org.mamba4j.checkpoint.Checkpoint;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;

@Command(
    name = "bench",
    description = "Measures how fast one model loads, reads a prompt and generates, and what the machine could do at most.",
    footer = {
      "",
      "load_ms        loading, files in the page cache",
      "ttft_ms        time to the first logits after a prompt of " + BenchCommand.TTFT_PROMPT + " tokens",
      "prefill_tok_s  tokens a second of the prompt of --prefill tokens",
      "decode_tok_s   tokens a second fed one by one, one sequence",
      "bytes_per_token      memory that a decode step must read and write: weights once, state twice",
      "read_bandwidth_gb_s  memory reads of as many threads as the engine has; on a GPU a copy, read and written",
      "sgemm_gflops         float32 matrix product of the engine, 512 x 3072 x 768",
      "",
      "Examples:",
      "  mamba4j bench --model tests/models/mamba2-java-9m",
      "  mamba4j bench --model state-spaces/mamba-130m-hf --threads 2 --prefill 512 --decode 128 --repeat 5 --json",
      "  mamba4j bench --model state-spaces/mamba-130m-hf --weights int8"
    })
final class BenchCommand extends CliCommand {
  static final int TTFT_PROMPT = 16;

  @Mixin LoadOptions model;
  @Mixin DeviceOptions device;

  @Option(names = "--prefill", paramLabel = "N", defaultValue = "512", description = "Tokens of the long prompt.")
  int prefill;

  @Option(names = "--decode", paramLabel = "N", defaultValue = "128", description = "Tokens of a decode sample.")
  int decode;

  @Option(names = "--repeat", paramLabel = "N", defaultValue = "5", description = "Samples of each figure.")
  int repeat;

  @Option(names = "--json", description = "Print one JSON object.", defaultValue = "false")
  boolean json;

  @Override
  public Integer call() throws Exception {
    checkPositive("--prefill", prefill);
    checkPositive("--decode", decode);
    checkPositive("--repeat", repeat);
    Path folder = model.folder();

    Map<String, Object> figures = new LinkedHashMap<>();
    try (Engine engine = Engine.create(device.engineOptions())) {
      ModelOptions options = model.options(engine).withProgress((what, done, total) -> {});
      figures.put("load_ms", Spread.seconds(repeat, () -> Model.load(folder, options).close()).milliseconds());
      try (Model loaded = Model.load(folder, options);
          Session session = loaded.newSession()) {
        measure(session, figures);
        figures.put("bytes_per_token", bytesPerToken(loaded, model.weights));
      }
      figures.put("read_bandwidth_gb_s", Ceilings.bandwidth(engine));
      figures.put("sgemm_gflops", Ceilings.sgemm(engine));
      figures.put("simd_target", engine.simdTarget());
      figures.put("threads", engine.threads());
      figures.put("weights", weights(folder));
      figures.put("activations", lower(model.activations));
    }
    if (json) {
      figures.replaceAll((name, value) -> value instanceof Spread spread ? spread.json() : value);
      Json.print(out(), figures);
    } else {
      figures.forEach((name, value) -> out().printf("%-20s %s%n", name, display(value)));
    }
    return 0;
  }

  private void measure(Session session, Map<String, Object> figures) throws Exception {
    long vocabulary = session.model().config().vocabSize();
    int[] shortPrompt = tokens(TTFT_PROMPT, vocabulary);
    int[] longPrompt = tokens(prefill, vocabulary);
    int[] generated = tokens(decode, vocabulary);
    figures.put("ttft_ms", Spread.seconds(repeat, () -> prompt(session, shortPrompt)).milliseconds());
    figures.put("prefill_tok_s", Spread.seconds(repeat, () -> prompt(session, longPrompt)).rate(prefill));
    Spread decoding =
        Spread.seconds(
            repeat,
            () -> {
              for (int token : generated) {
                session.advance(token);
              }
            });
    figures.put("decode_tok_s", decoding.rate(decode));
  }

  private static void prompt(Session session, int[] tokens) {
    session.reset();
    session.advance(tokens);
  }

  /** Speed does not depend on which tokens they are; these visit many rows of the embedding. */
  private static int[] tokens(int count, long vocabulary) {
    return IntStream.range(0, count).map(i -> (int) ((i * 7919L + 13) % vocabulary)).toArray();
  }

  /** What one sequence's next token costs in memory traffic. Of an embedding that is not the head too, one row is read. */
  private static long bytesPerToken(Model loaded, WeightType weights) throws IOException {
    long unread = 0;
    if (!loaded.config().tiedHead()) {
      try (Checkpoint checkpoint = Checkpoint.open(loaded.folder())) {
        Tensor embedding = checkpoint.embedding();
        DType dtype = weights.of("backbone.embeddings.weight", embedding);
        unread = dtype.bytesFor((embedding.dim(0) - 1) * embedding.dim(1));
      }
    }
    return loaded.weightBytes() - unread + 2 * loaded.stateBytes();
  }

  /** What was asked for, or what the checkpoint stores. */
  private String weights(Path folder) throws IOException {
    if (model.weights != WeightType.STORED) {
      return lower(model.weights);
    }
    try (Checkpoint checkpoint = Checkpoint.open(folder)) {
      return lower(checkpoint.layers().getFirst().inProj().dtype());
    }
  }

  private void checkPositive(String option, int value) {
    if (value < 1) {
      throw new ParameterException(spec.commandLine(), option + " must be at least 1, found " + value);
    }
  }

  private static String lower(Enum<?> constant) {
    return constant.name().toLowerCase(Locale.ROOT);
  }

  private static String display(Object value) {
    return switch (value) {
      case Spread spread -> "%s  (%s to %s)".formatted(display(spread.median()), display(spread.min()), display(spread.max()));
      case Double number -> String.format(Locale.ROOT, number < 100 ? "%,.2f" : "%,.0f", number);
      case Long number -> Text.count(number);
      default -> value.toString();
    };
  }
}
