package org.mamba4j.bench;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Runs m4j-bench: the same steps without a JVM. */
record NativeHarness(Path program) {
  /** What a step is measured on. */
  record Setting(String model, int threads) {}

  /** Microseconds a step, the median of a sample. */
  Map<Setting, Double> stepMicros(List<String> models, List<Integer> threads) throws IOException {
    Path json = Files.createTempFile("m4j-bench", ".json");
    try {
      run(
          program.toString(),
          "--no-ops",
          "--models",
          String.join(",", models),
          "--dtypes",
          "f32",
          "--prefill",
          "16",
          "--decode",
          "1",
          "--threads",
          String.join(",", threads.stream().map(Object::toString).toList()),
          "--json",
          json.toString());
      Map<Setting, Double> micros = new LinkedHashMap<>();
      for (Object run : list(JSON.std.mapFrom(Files.readString(json)), "runs")) {
        for (Object figure : list(run, "figures")) {
          if (get(figure, "group").equals("decode")) {
            double stepsPerSecond = ((Number) get(get(figure, "rate"), "median")).doubleValue();
            int count = ((Number) get(run, "threads")).intValue();
            micros.put(new Setting((String) get(figure, "name"), count), 1e6 / stepsPerSecond);
          }
        }
      }
      return micros;
    } finally {
      Files.deleteIfExists(json);
    }
  }

  private static void run(String... command) throws IOException {
    try {
      int code = new ProcessBuilder(command).inheritIO().start().waitFor();
      if (code != 0) {
        throw new IOException(command[0] + " ended with code " + code);
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IOException(e);
    }
  }

  private static Object get(Object object, String name) {
    return ((Map<?, ?>) object).get(name);
  }

  private static List<?> list(Object object, String name) {
    return (List<?>) get(object, name);
  }
}
