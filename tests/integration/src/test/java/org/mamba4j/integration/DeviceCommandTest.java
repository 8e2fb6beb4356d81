package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.integration.Goldens.assertClose;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.checkpoint.SafetensorsFile;
import org.mamba4j.cli.Main;

/** Every command that computes, on the device under test; {@code convert} only rewrites files. */
class DeviceCommandTest {
  private static final String GOLDEN = Goldens.folder("mamba2-g2").toString();

  @TempDir Path temp;

  private static String run(Object... args) {
    StringWriter out = new StringWriter();
    StringWriter err = new StringWriter();
    Object[] device = {"--device", Goldens.DEVICE};
    String[] words = Stream.of(args, device).flatMap(Arrays::stream).map(Object::toString).toArray(String[]::new);
    assertEquals(0, Main.run(new PrintWriter(out), new PrintWriter(err), words), err::toString);
    return out.toString();
  }

  @ParameterizedTest
  @CsvSource({"selective-scan,op-scan", "ssd,op-ssd"})
  void op(String op, String prefix) throws IOException {
    for (Path golden : Goldens.ops(prefix)) {
      Path written = temp.resolve("op.safetensors");
      run("op", op, golden, written);
      try (SafetensorsFile expected = SafetensorsFile.open(golden);
          SafetensorsFile found = SafetensorsFile.open(written)) {
        for (String name : List.of("out", "last_state")) {
          assertClose(expected.tensor(name), found.tensor(name), 1e-5, golden + " " + name);
        }
      }
    }
  }

  @Test
  void logits() throws IOException {
    Path written = temp.resolve("logits.safetensors");
    try (Goldens.Expected expected = Goldens.expected(Goldens.folder("mamba2-g2"))) {
      int[] ids = expected.ids("input_ids")[0];
      run("logits", "--model", GOLDEN, "--ids", join(ids), "--split", "3,1", "--out", written);
      try (SafetensorsFile found = SafetensorsFile.open(written)) {
        double tolerance = Goldens.tolerance(Goldens.folder("mamba2-g2"));
        assertClose(expected.tensor("logits").select(0, 0), found.tensor("logits.0"), tolerance, "logits");
        assertClose(expected.tensor("ssm_states").select(1, 0), found.tensor("ssm_states.0"), tolerance, "SSM state");
      }
    }
  }

  @Test
  void generateAndScore() throws IOException {
    try (Goldens.Expected expected = Goldens.expected(Goldens.folder("mamba2-g2"))) {
      String prompt = join(expected.ids("greedy_prompt")[0]);
      Map<String, Object> generated =
          JSON.std.mapFrom(
              run("generate", "--model", GOLDEN, "--ids", prompt, "--max-new-tokens", 3, "--ignore-eos", "--json"));
      int[] tokens = ((List<?>) generated.get("tokens")).stream().mapToInt(id -> (Integer) id).toArray();
      assertArrayEquals(Arrays.copyOf(expected.ids("greedy_tokens")[0], 3), tokens);
      int[] ids = expected.ids("input_ids")[0];
      Map<String, Object> score = JSON.std.mapFrom(run("score", "--model", GOLDEN, "--ids", join(ids), "--json"));
      float[] found = new float[ids.length - 1];
      List<?> logProbs = (List<?>) score.get("logprobs");
      for (int i = 0; i < found.length; i++) {
        found[i] = ((Number) logProbs.get(i)).floatValue();
      }
      float[] wanted = expected.tensor("token_logprobs").select(0, 0).toFloatArray();
      assertClose(wanted, found, Goldens.tolerance(Goldens.folder("mamba2-g2")), "log-probabilities");
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"stored", "bf16", "int8"})
  void benchAndInspect(String weights) throws IOException {
    Object model = weights.equals("int8") ? Goldens.DEMO_MODEL : GOLDEN;
    Map<String, Object> figures =
        JSON.std.mapFrom(
            run("bench", "--model", model, "--weights", weights, "--prefill", 8, "--decode", 4, "--repeat", 1, "--json"));
    for (String name : List.of("prefill_tok_s", "decode_tok_s", "read_bandwidth_gb_s", "sgemm_gflops")) {
      assertTrue(figures.containsKey(name), figures.toString());
    }
    Map<String, Object> facts =
        JSON.std.mapFrom(run("inspect", "--model", model, "--weights", weights, "--json"));
    assertEquals(Goldens.DEVICE.toString(), facts.get("device"));
  }

  private static String join(int[] ids) {
    return Arrays.stream(ids).mapToObj(Integer::toString).collect(Collectors.joining(","));
  }
}
