package org.mamba4j.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.mamba4j.Model;

class BenchCommandTest {
  private static final Path DEMO = Path.of("../../tests/models/mamba2-java-9m");

  private final StringWriter out = new StringWriter();
  private final StringWriter err = new StringWriter();

  private int run(String... options) {
    String[] args = new String[options.length + 3];
    args[0] = "bench";
    args[1] = "--model";
    args[2] = DEMO.toString();
    System.arraycopy(options, 0, args, 3, options.length);
    return Main.run(new PrintWriter(out), new PrintWriter(err), args);
  }

  @Test
  void jsonHasTheFixedForm() throws IOException {
    int code =
        run(
            "--threads", "1", "--prefill", "20", "--decode", "4", "--repeat", "3", "--weights", "bf16", "--activations",
            "bf16", "--json");
    assertEquals(0, code, err.toString());
    assertEquals(1, out.toString().lines().count());
    Map<String, Object> json = JSON.std.mapFrom(out.toString());
    assertEquals(
        List.of(
            "load_ms", "ttft_ms", "prefill_tok_s", "decode_tok_s", "bytes_per_token", "read_bandwidth_gb_s", "sgemm_gflops",
            "simd_target", "threads", "weights", "activations"),
        List.copyOf(json.keySet()));
    for (String name : List.of("load_ms", "ttft_ms", "prefill_tok_s", "decode_tok_s")) {
      Map<?, ?> spread = (Map<?, ?>) json.get(name);
      assertEquals(List.of("median", "min", "max"), List.copyOf(spread.keySet()));
      double min = number(spread.get("min"));
      double median = number(spread.get("median"));
      assertTrue(0 < min && min <= median && median <= number(spread.get("max")), name + " " + spread);
    }
    // More than the weights in memory, of which there are no fewer than two bytes a parameter.
    try (Model model = Model.load(DEMO)) {
      assertTrue(number(json.get("bytes_per_token")) > 2 * model.parameterCount(), json.toString());
    }
    assertTrue(number(json.get("read_bandwidth_gb_s")) > 0.1, json.toString());
    assertTrue(number(json.get("sgemm_gflops")) > 0, json.toString());
    assertEquals(1, json.get("threads"));
    assertEquals("bf16", json.get("weights"));
    assertEquals("bf16", json.get("activations"));
  }

  @Test
  void tableForPeople() {
    int code = run("--threads", "1", "--prefill", "20", "--decode", "4", "--repeat", "1");
    assertEquals(0, code, err.toString());
    assertTrue(
        out.toString()
            .matches("(?s)load_ms +[0-9.,]+  \\([0-9.,]+ to [0-9.,]+\\)\\R.*weights +bf16\\Ractivations +f32\\R"),
        out.toString());
  }

  @ParameterizedTest
  @CsvSource({
    "--prefill, 0, 2, --prefill must be at least 1",
    "--decode, -1, 2, --decode must be at least 1",
    "--repeat, 0, 2, --repeat must be at least 1",
    "--weights, int3, 2, INT4"
  })
  void refusesWrongOptions(String option, String value, int code, String message) {
    assertEquals(code, run(option, value));
    assertTrue(err.toString().contains(message), err.toString());
    assertEquals("", out.toString());
  }

  @Test
  void medianOfAnEvenNumberIsBetweenTheTwoInTheMiddle() {
    assertEquals(new Spread(2.5, 1, 9), Spread.of(9, 1, 2, 3));
    assertEquals(new Spread(4, 1, 10), new Spread(0.25, 0.1, 1).rate(1));
  }

  private static double number(Object value) {
    return ((Number) value).doubleValue();
  }
}
