package org.mamba4j.bench.peers;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.function.ToDoubleFunction;
import org.mamba4j.ActivationType;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/**
 * Runs this library and its peers on the same weights, one after the other and again, so that all meet the same machine.
 * A round in which any of them shared the machine with somebody else is thrown away as a whole.
 */
@Command(
    name = "bench.sh --peers",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    sortOptions = false,
    description = {
      "Compares mamba4j with the libraries a Java user would otherwise take, on the same weights: llama.cpp through its C API",
      "and java-llama.cpp. Ratios say how many times as fast mamba4j is."
    })
public final class Peers implements Callable<Integer> {
  static final String OURS = "mamba4j";
  static final String LLAMA_CPP = "llama.cpp";
  static final String JAVA_LLAMA = "java-llama.cpp";

  /** Rounds are repeated this many times as often as asked for, if they must be thrown away. */
  private static final int PATIENCE = 5;

  private static final String GREEDY_PROMPT = "1000,2,345,17,4999,128,40000,77";
  private static final int GREEDY_TOKENS = 16;

  @Option(names = "--models", split = ",", defaultValue = "mamba-130m,mamba2-130m", description = "Models.")
  List<String> models;

  @Option(names = "--weights", split = ",", defaultValue = "f32,f16,q8_0", description = "Forms of the weights.")
  List<String> weights;

  @Option(
      names = "--activations",
      defaultValue = "F32",
      description = "What ours may round activations to: ${COMPLETION-CANDIDATES}. llama.cpp takes the weights' type.")
  ActivationType activations;

  @Option(names = "--threads", defaultValue = "2", description = "Threads of each.")
  int threads;

  @Option(names = "--rounds", defaultValue = "5", description = "Undisturbed samples of each figure.")
  int rounds;

  @Option(names = "--prefill", defaultValue = "512", description = "Tokens of the long prompt.")
  int prefill;

  @Option(names = "--decode", defaultValue = "64", description = "Tokens of a decode sample.")
  int decode;

  @Option(
      names = "--max-foreign",
      defaultValue = "0.05",
      description = "Share of the processors that others may have in a sample; 1 takes every sample.")
  double maxForeign;

  @Option(names = "--model-dir", required = true, hidden = true)
  Path modelDir;

  @Option(names = "--llama-cpp", hidden = true)
  Path llamaCpp;

  @Option(names = "--out", required = true, hidden = true)
  Path out;

  private final List<Map<String, Object>> figures = new ArrayList<>();
  private final List<String> notes = new ArrayList<>();
  private boolean wrong;

  public static void main(String[] args) {
    CommandLine line = new CommandLine(new Peers()).setCaseInsensitiveEnumValuesAllowed(true);
    line.setExecutionExceptionHandler(
        (e, at, arguments) -> {
          System.err.println("bench.sh: " + e.getMessage());
          return CommandLine.ExitCode.SOFTWARE;
        });
    System.exit(line.execute(args));
  }

  @Override
  public Integer call() throws IOException {
    if (llamaCpp == null) {
      note("llama.cpp is left out: its library is not there");
    }
    System.out.printf(
        "%-12s %-5s %-12s %-15s %10s %-5s %-19s %s%n",
        "model", "form", "work", "library", "median", "unit", "min-max", "mamba4j is faster by");
    for (String model : models) {
      for (String form : weights) {
        compare(model, form);
      }
    }
    Map<String, Object> report = new LinkedHashMap<>();
    report.put("date", LocalDate.now().toString());
    report.put("processor", processor());
    report.put("threads", threads);
    report.put("activations", activations.name().toLowerCase(Locale.ROOT));
    report.put("max_foreign_share", maxForeign);
    report.put("figures", figures);
    report.put("notes", notes);
    Files.writeString(out, JSON.std.with(JSON.Feature.PRETTY_PRINT_OUTPUT).asString(report) + "\n");
    return wrong ? 1 : 0;
  }

  private void compare(String model, String form) throws IOException {
    Map<String, WorkerProcess> contenders = new LinkedHashMap<>();
    try {
      for (String name : List.of(OURS, LLAMA_CPP, JAVA_LLAMA)) {
        start(name, model, form, contenders);
      }
      if (contenders.isEmpty()) {
        return;
      }
      checkGreedy(model, form, contenders);
      for (Work work :
          List.of(
              Work.rate("decode", "decode", decode),
              Work.rate("prefill", "prompt", prefill),
              Work.time("first token", "prompt 16"),
              Work.time("load", "load"))) {
        report(model, form, work, measure(work, contenders));
      }
    } finally {
      for (WorkerProcess contender : contenders.values()) {
        contender.close();
      }
    }
  }

  private void start(String name, String model, String form, Map<String, WorkerProcess> contenders) {
    if (name.equals(LLAMA_CPP) && llamaCpp == null) {
      return;
    }
    File log = out.resolveSibling("peers-" + name + ".log").toFile();
    try {
      Path path = name.equals(OURS) ? ourModel(model, form) : modelDir.resolve(model + "." + form + ".gguf");
      String extra =
          switch (name) {
            case OURS -> activations.name();
            case LLAMA_CPP -> llamaCpp.toString();
            default -> "";
          };
      contenders.put(name, new WorkerProcess(name, path, threads, extra, log));
    } catch (IOException | UnsupportedOperationException e) {
      note("%s %s: %s cannot run it: %s".formatted(model, form, name, e.getMessage()));
    }
  }

  private Path ourModel(String model, String form) {
    return switch (form) {
      case "f32" -> modelDir.resolve(model + "-hf");
      case "f16" -> modelDir.resolve(model + "-hf16");
      case "bf16", "q8_0" -> modelDir.resolve(model + "." + form + ".gguf"); // the very file that the others read
      default -> throw new UnsupportedOperationException("it has no weights of this form");
    };
  }

  /** Same weights, same tokens; other forms than f32 may round differently, which the notes then show. */
  private void checkGreedy(String model, String form, Map<String, WorkerProcess> contenders) throws IOException {
    if (!contenders.containsKey(OURS) || !contenders.containsKey(LLAMA_CPP)) {
      return;
    }
    String request = "greedy " + GREEDY_TOKENS + " " + GREEDY_PROMPT;
    String[] ours = contenders.get(OURS).ask(request).split(",");
    String[] theirs = contenders.get(LLAMA_CPP).ask(request).split(",");
    int same = Arrays.mismatch(ours, theirs);
    if (same >= 0) {
      note(
          "%s %s: greedy tokens agree with llama.cpp up to number %d of %d (%s, not %s)"
              .formatted(model, form, same, GREEDY_TOKENS, ours[same], theirs[same]));
      wrong |= form.equals("f32");
    }
  }

  /** Undisturbed rounds: in each, every contender's sample. */
  private List<Map<String, Sample>> measure(Work work, Map<String, WorkerProcess> contenders) throws IOException {
    for (WorkerProcess contender : contenders.values()) {
      contender.measure(work.request()); // warms up
    }
    List<Map<String, Sample>> clean = new ArrayList<>();
    for (int attempt = 0; attempt < PATIENCE * rounds && clean.size() < rounds; attempt++) {
      List<String> order = new ArrayList<>(contenders.keySet());
      Map<String, Sample> round = new LinkedHashMap<>();
      for (String name : attempt % 2 == 0 ? order : order.reversed()) {
        round.put(name, contenders.get(name).measure(work.request()));
      }
      if (round.values().stream().allMatch(sample -> sample.foreignShare() <= maxForeign)) {
        clean.add(round);
      }
    }
    return clean;
  }

  private void report(String model, String form, Work work, List<Map<String, Sample>> clean) {
    if (clean.size() < rounds) {
      note(
          "%s %s %s: only %d of %d rounds had the machine for themselves"
              .formatted(model, form, work.name(), clean.size(), rounds));
    }
    if (clean.isEmpty()) {
      return;
    }
    for (String name : List.of(OURS, LLAMA_CPP, JAVA_LLAMA)) {
      if (!clean.getFirst().containsKey(name)) {
        continue;
      }
      Spread figure = spread(clean, round -> work.figure(round.get(name)));
      Map<String, Object> row = new LinkedHashMap<>();
      row.put("model", model);
      row.put("weights", form);
      row.put("work", work.name());
      row.put("library", name);
      row.put("unit", work.unit());
      row.put("figure", figure.json());
      String faster = "";
      if (!name.equals(OURS) && clean.getFirst().containsKey(OURS)) {
        Spread ratio = spread(clean, round -> round.get(name).seconds() / round.get(OURS).seconds());
        row.put("mamba4j_faster_by", ratio.json());
        faster = String.format(Locale.ROOT, "%.2fx (%.2f-%.2f)", ratio.median(), ratio.min(), ratio.max());
      }
      figures.add(row);
      System.out.printf(
          Locale.ROOT,
          "%-12s %-5s %-12s %-15s %10.1f %-5s %-19s %s%n",
          model,
          form,
          work.name(),
          name,
          figure.median(),
          work.unit(),
          String.format(Locale.ROOT, "%.1f-%.1f", figure.min(), figure.max()),
          faster);
    }
  }

  private static Spread spread(List<Map<String, Sample>> rounds, ToDoubleFunction<Map<String, Sample>> value) {
    return Spread.of(rounds.stream().mapToDouble(value).toArray());
  }

  private void note(String note) {
    notes.add(note);
    System.out.println("note: " + note);
  }

  private static String processor() throws IOException {
    try (var lines = Files.lines(Path.of("/proc/cpuinfo"))) {
      return lines
          .filter(line -> line.startsWith("model name"))
          .map(line -> line.substring(line.indexOf(':') + 2))
          .findFirst()
          .orElse(System.getProperty("os.arch"));
    }
  }
}
