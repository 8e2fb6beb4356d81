package org.mamba4j.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** {@code --weights}: the type of the matrices in memory, or written by convert. */
class WeightsOptionTest {
  private static final Path DEMO = Path.of("../../tests/models/mamba2-java-9m");
  private static final Path GOLDEN = Path.of("../../tests/goldens/mamba1-tied");

  @TempDir Path temp;

  private record Output(int code, String out, String err) {}

  private static Output run(Object... words) {
    String[] args = new String[words.length];
    for (int i = 0; i < args.length; i++) {
      args[i] = words[i].toString();
    }
    StringWriter out = new StringWriter();
    StringWriter err = new StringWriter();
    return new Output(Main.run(new PrintWriter(out), new PrintWriter(err), args), out.toString(), err.toString());
  }

  @ParameterizedTest
  @CsvSource({
    "stored, 'bf16, f32', 2.0, 2.1", "f32, 'f32', 4, 4", "bf16, 'bf16, f32', 2.0, 2.1", "f16, 'f16, f32', 2.0, 2.1",
    "int8, 'f32, q8_0', 1.06, 1.1", "int4, 'f32, q4_0', 0.56, 0.6"
  })
  void inspectShowsIt(String weights, String dtypes, double least, double most) throws IOException {
    Output output = run("inspect", "--model", DEMO, "--weights", weights, "--json");
    assertEquals(0, output.code(), output.err());
    Map<String, Object> json = JSON.std.mapFrom(output.out());
    assertEquals(dtypes, json.get("weight_dtype"));
    double bytes = ((Number) json.get("weight_bytes")).doubleValue() / ((Number) json.get("parameters")).doubleValue();
    assertTrue(least <= bytes && bytes <= most, "bytes a parameter: " + bytes);
  }

  @Test
  void everyCommandTakesIt() throws IOException {
    String prompt = "int i = 0;";
    for (String weights : new String[] {"f32", "int8", "int4"}) {
      assertEquals(
          0, run("generate", "--model", DEMO, "--weights", weights, "--prompt", prompt, "--max-new-tokens", 4).code());
      assertEquals(0, run("score", "--model", DEMO, "--weights", weights, "--prompt", prompt).code());
    }
    Path exact = temp.resolve("exact");
    Path coarse = temp.resolve("coarse");
    assertEquals(0, run("logits", "--model", GOLDEN, "--ids", "1,2,3", "--out", exact).code());
    assertEquals(0, run("logits", "--model", GOLDEN, "--ids", "1,2,3", "--out", coarse, "--weights", "int4").code());
    assertTrue(Files.mismatch(exact, coarse) >= 0);
  }

  /** What convert writes is what the other commands hold in memory. */
  @ParameterizedTest
  @ValueSource(strings = {"f16", "bf16", "f32"})
  void convertWritesIt(String weights) throws IOException {
    Path converted = temp.resolve("converted");
    Output output = run("convert", "--model", GOLDEN, "--weights", weights, "--out", converted);
    assertEquals(0, output.code(), output.err());
    Path expected = temp.resolve("expected");
    Path found = temp.resolve("found");
    run("logits", "--model", GOLDEN, "--weights", weights, "--ids", "5,6,7,8;1", "--out", expected);
    run("logits", "--model", converted, "--ids", "5,6,7,8;1", "--out", found);
    assertArrayEquals(Files.readAllBytes(expected), Files.readAllBytes(found));
    Map<String, Object> config = JSON.std.mapFrom(Files.readString(converted.resolve("config.json")));
    String name = Map.of("f16", "float16", "bf16", "bfloat16", "f32", "float32").get(weights);
    assertEquals(name, config.get(config.containsKey("dtype") ? "dtype" : "torch_dtype"));
  }

  @ParameterizedTest
  @ValueSource(strings = {"int8", "int4"})
  void convertRefusesBlocks(String weights) {
    Path out = temp.resolve("blocks");
    Output output = run("convert", "--model", GOLDEN, "--weights", weights, "--out", out);
    assertEquals(2, output.code());
    assertTrue(output.err().contains("--weights " + weights + ": safetensors files have no such type"), output.err());
    assertTrue(Files.notExists(out));
  }
}
