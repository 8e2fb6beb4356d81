package org.mamba4j.bench;

import com.fasterxml.jackson.jr.ob.JSON;
import com.sun.management.ThreadMXBean;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import org.mamba4j.Model;
import org.mamba4j.Session;
import org.mamba4j.bench.NativeHarness.Setting;
import org.openjdk.jmh.profile.GCProfiler;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.results.format.ResultFormatType;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.TimeValue;
import org.openjdk.jmh.util.Statistics;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** One decode step through Java: its cost over the native call, what it allocates, and how its latency spreads. */
@Command(
    name = "bench.sh --java",
    mixinStandardHelpOptions = true,
    showDefaultValues = true,
    sortOptions = false,
    description = {
      "Measures one decode step through Java with JMH, between two measurements of the same step by the native harness:",
      "time, bytes that it allocates (any is an error), and the latency of single steps as a service takes them."
    })
public final class JavaBenchmarks implements Callable<Integer> {
  private static final String QUICK_MODEL = "mamba-tiny";

  @Option(names = "--models", split = ",", defaultValue = "mamba-tiny,mamba-130m", description = "Models.")
  List<String> models;

  @Option(names = "--threads", split = ",", defaultValue = "1,2", description = "Threads of the engine.")
  List<Integer> threads;

  @Option(names = "--seconds", defaultValue = "3", description = "Length of an iteration.")
  int seconds;

  @Option(names = "--iterations", defaultValue = "5", description = "Iterations after as many that warm up.")
  int iterations;

  @Option(names = "--model-dir", required = true, hidden = true)
  Path modelDir;

  @Option(names = "--native", required = true, hidden = true)
  Path nativeProgram;

  @Option(names = "--out", required = true, hidden = true, description = "Our figures; JMH's go beside it.")
  Path out;

  public static void main(String[] args) {
    CommandLine line = new CommandLine(new JavaBenchmarks());
    line.setExecutionExceptionHandler(
        (e, at, arguments) -> {
          System.err.println("bench.sh: " + e.getMessage());
          return CommandLine.ExitCode.SOFTWARE;
        });
    System.exit(line.execute(args));
  }

  @Override
  public Integer call() throws IOException, RunnerException {
    System.setProperty(SessionAdvance.MODELS, modelDir.toString());
    NativeHarness harness = new NativeHarness(nativeProgram);
    Map<Setting, Double> before = harness.stepMicros(models, threads);
    Map<Setting, List<RunResult>> results = runJmh();
    Map<Setting, Double> after = harness.stepMicros(models, threads);

    List<Map<String, Object>> rows = new ArrayList<>();
    System.out.printf(
        "%n%-12s %7s %17s %10s %12s %10s %10s %10s %10s%n",
        "model", "threads", "native µs", "Java µs", "native/Java", "B/step", "p50 µs", "p99 µs", "p99.9 µs");
    boolean allocates = false;
    compileSteps();
    for (var entry : results.entrySet()) {
      Map<String, Object> row = row(entry.getKey(), before, after, entry.getValue());
      rows.add(row);
      allocates |= (double) row.get("allocated_bytes") > 0;
      System.out.printf(
          Locale.ROOT,
          "%-12s %7d %8.1f-%8.1f %10.1f %12.3f %10.1f %10.1f %10.1f %10.1f%n",
          row.values().toArray());
    }
    Files.writeString(out, JSON.std.with(JSON.Feature.PRETTY_PRINT_OUTPUT).asString(rows) + "\n");
    if (allocates) {
      System.err.println("A decode step must not allocate on the Java heap.");
    }
    return allocates ? 1 : 0;
  }

  private Map<Setting, List<RunResult>> runJmh() throws RunnerException {
    var options =
        new OptionsBuilder()
            .include(SessionAdvance.class.getName())
            .param("model", models.toArray(String[]::new))
            .param("threads", threads.stream().map(Object::toString).toArray(String[]::new))
            .forks(1)
            .warmupIterations(iterations)
            .warmupTime(TimeValue.seconds(seconds))
            .measurementIterations(iterations)
            .measurementTime(TimeValue.seconds(seconds))
            .addProfiler(GCProfiler.class)
            .jvmArgs("--enable-native-access=ALL-UNNAMED", "-D" + SessionAdvance.MODELS + "=" + modelDir)
            .resultFormat(ResultFormatType.JSON)
            .result(out.resolveSibling("jmh.json").toString())
            .build();
    Map<Setting, List<RunResult>> bySetting = new LinkedHashMap<>();
    for (RunResult result : new Runner(options).run()) {
      var params = result.getParams();
      Setting setting = new Setting(params.getParam("model"), Integer.parseInt(params.getParam("threads")));
      bySetting.computeIfAbsent(setting, key -> new ArrayList<>()).add(result);
    }
    return bySetting;
  }

  /** In the order of the printed columns. */
  private static Map<String, Object> row(
      Setting setting, Map<Setting, Double> before, Map<Setting, Double> after, List<RunResult> results)
      throws IOException {
    double first = before.get(setting);
    double second = after.get(setting);
    double step = statistics(results, "step").getMean();
    Statistics served = statistics(results, "servedStep");
    Map<String, Object> row = new LinkedHashMap<>();
    row.put("model", setting.model());
    row.put("threads", setting.threads());
    row.put("native_us_min", Math.min(first, second));
    row.put("native_us_max", Math.max(first, second));
    row.put("java_us", step);
    row.put("native_over_java", (first + second) / 2 / step);
    row.put("allocated_bytes", allocatedBytes(setting));
    row.put("served_p50_us", served.getPercentile(50));
    row.put("served_p99_us", served.getPercentile(99));
    row.put("served_p999_us", served.getPercentile(99.9));
    return row;
  }

  private static Statistics statistics(List<RunResult> results, String method) {
    return results.stream()
        .filter(result -> result.getParams().getBenchmark().endsWith("." + method))
        .findFirst()
        .orElseThrow()
        .getPrimaryResult()
        .getStatistics();
  }

  /**
   * Bytes of a step, exactly: JMH's own figure, of the whole process, contains what JMH allocates. The least over some
   * rounds, for a compilation may fall into one.
   */
  private static double allocatedBytes(Setting setting) throws IOException {
    try (Model model = SessionAdvance.load(setting.model(), setting.threads());
        Session session = model.newSession()) {
      return leastBytes(session, 5, 20);
    }
  }

  /** Takes the thousands of steps after which the compiler is done with them, on a model where they are quick. */
  private static void compileSteps() throws IOException {
    try (Model model = SessionAdvance.load(QUICK_MODEL, 1);
        Session session = model.newSession()) {
      leastBytes(session, 100, 500);
    }
  }

  private static double leastBytes(Session session, int rounds, int steps) {
    ThreadMXBean bean = (ThreadMXBean) ManagementFactory.getThreadMXBean();
    long least = Long.MAX_VALUE;
    for (int round = 0; round < rounds && least > 0; round++) {
      long before = bean.getCurrentThreadAllocatedBytes();
      for (int i = 0; i < steps; i++) {
        session.advance(i);
        session.logits();
      }
      least = Math.min(least, bean.getCurrentThreadAllocatedBytes() - before);
    }
    return (double) least / steps;
  }
}
