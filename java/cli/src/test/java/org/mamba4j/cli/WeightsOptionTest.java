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
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
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
  void statesInBfloat16NeedAGpu() {
    for (String command : new String[] {"inspect", "score", "generate"}) {
      Object[] words = {command, "--model", DEMO, "--state", "bf16", "--prompt", "int i"};
      Output output = run(command.equals("inspect") ? Arrays.copyOf(words, 5) : words);
      assertEquals(1, output.code());
      assertTrue(output.err().contains("bfloat16 states are for GPUs, the CPU keeps float32"), output.err());
      assertEquals(0, run("inspect", "--model", DEMO, "--state", "f32").code());
    }
  }

  /** Commands that load a model take it; what it changes ActivationTypeTest tells. */
  @Test
  void activationsInBfloat16() throws IOException {
    String prompt = "int i = 0;";
    Path file = temp.resolve("logits");
    Object[][] commands = {
      {"inspect", "--model", DEMO}, {"score", "--model", DEMO, "--prompt", prompt},
      {"generate", "--model", DEMO, "--prompt", prompt, "--max-new-tokens", 2},
      {"logits", "--model", GOLDEN, "--ids", "1,2", "--weights", "bf16", "--out", file}
    };
    for (Object[] command : commands) {
      for (String type : new String[] {"f32", "bf16", "int8"}) {
        Object[] words = Arrays.copyOf(command, command.length + 2);
        words[command.length] = "--activations";
        words[command.length + 1] = type;
        Output output = run(words);
        assertEquals(type.equals("int8") ? 2 : 0, output.code(), output.err());
        assertTrue(output.code() == 0 || output.err().contains("--activations"), output.err());
      }
    }
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
  @CsvSource({
    "mamba1-tied, int8", "mamba1-tied-bf16, int8", "mamba1-tied-original, int4", "falcon-mamba, int8", "mamba2-g1, int4",
    "mamba2-g1-f16, int8", "mamba2-g1-sharded, int8", "mamba2-g2, int8", "mamba2-g2, int4"
  })
  void convertQuantises(String golden, String weights) throws IOException {
    Path folder = GOLDEN.resolveSibling(golden);
    Path converted = temp.resolve("converted");
    Output output = run("convert", "--model", folder, "--weights", weights, "--out", converted);
    assertEquals(0, output.code(), output.err());
    assertEquals(List.of("model.gguf"), names(converted));
    Path expected = temp.resolve("expected");
    String ids = "5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26;1";
    assertEquals(
        0, run("logits", "--model", folder, "--weights", weights, "--ids", ids, "--out", expected).code());
    for (Path model : new Path[] {converted, converted.resolve("model.gguf")}) {
      Path found = temp.resolve("found");
      assertEquals(0, run("logits", "--model", model, "--ids", ids, "--out", found).code());
      assertArrayEquals(Files.readAllBytes(expected), Files.readAllBytes(found), model.toString());
    }
  }

  @Test
  void convertRefusesWhatGgufCannotHold() throws IOException {
    Path out = temp.resolve("out");
    Path biased = GOLDEN.resolveSibling("mamba1-untied-bias");
    Output output = run("convert", "--model", biased, "--weights", "int8", "--out", out);
    assertEquals(1, output.code());
    assertTrue(output.err().contains("no place for the biases of in_proj and out_proj"), output.err());
    assertEquals(List.of(), names(out));
  }

  /** Text works with the quantised folder as with the model that it comes from, also when that was a GGUF file. */
  @Test
  void convertTakesTheTokenizerAlong() throws IOException {
    Path first = temp.resolve("first");
    assertEquals(0, run("convert", "--model", DEMO, "--weights", "int8", "--out", first).code());
    Object tokens = tokens(first);
    assertEquals(tokens(DEMO, "--weights", "int8"), tokens);

    Output again = run("convert", "--model", DEMO, "--weights", "int4", "--out", first);
    assertEquals(1, again.code());
    assertTrue(again.err().contains("exists already; --force replaces it"), again.err());
    assertEquals(0, run("convert", "--model", DEMO, "--weights", "int8", "--out", first, "--force").code());
    assertEquals(tokens, tokens(first));

    Path second = temp.resolve("second");
    Path file = first.resolve("model.gguf");
    assertEquals(0, run("convert", "--model", file, "--weights", "int8", "--out", second).code());
    assertEquals(names(first), names(second));
    assertEquals(-1, Files.mismatch(first.resolve("tokenizer.json"), second.resolve("tokenizer.json")));
    assertEquals(tokens, tokens(second));
  }

  @ParameterizedTest
  @ValueSource(strings = {"model.safetensors", "pytorch_model.bin.index.json", "other.gguf"})
  void convertLeavesFoldersOfOtherModels(String name) throws IOException {
    Path other = Files.writeString(temp.resolve(name), "");
    Output output = run("convert", "--model", GOLDEN, "--weights", "int4", "--out", temp, "--force");
    assertEquals(1, output.code());
    assertTrue(output.err().contains("holds " + name), output.err());
    assertEquals(0, Files.size(other));
    assertEquals(List.of(name), names(temp));
  }

  /** Divergence from the same weights is 0, from quantised ones small and larger with fewer bits. */
  @Test
  void scoreAgainstOtherWeights() throws IOException {
    Path text = Path.of("src/main/java/org/mamba4j/cli/ScoreCommand.java");
    Map<String, Double> mean = new HashMap<>();
    for (String weights : new String[] {"f32", "int8", "int4"}) {
      Object[] words = {"score", "--model", DEMO, "--weights", weights, "--against", "f32", "--prompt-file", text, "--json"};
      Output output = run(words);
      assertEquals(0, output.code(), output.err());
      Map<String, Object> json = JSON.std.mapFrom(output.out());
      assertTrue(((Number) json.get("tokens")).intValue() > 500, output.out());
      assertEquals("f32", json.get("against"));
      mean.put(weights, ((Number) json.get("kl_mean")).doubleValue());
      double high = ((Number) json.get("kl_p99")).doubleValue();
      assertTrue(weights.equals("f32") ? high == 0 : high > mean.get(weights), output.out());
      double ratio =
          ((Number) json.get("perplexity")).doubleValue() / ((Number) json.get("against_perplexity")).doubleValue();
      assertEquals(1, ratio, weights.equals("int4") ? 0.04 : 0.005, output.out());
    }
    assertEquals(0, mean.get("f32"));
    assertTrue(0 < mean.get("int8") && mean.get("int8") < 1e-3 && mean.get("int8") < mean.get("int4"), mean.toString());
    Output table = run("score", "--model", DEMO, "--weights", "int8", "--against", "f32", "--prompt-file", text);
    assertTrue(table.out().matches("(?s)int8 +perplexity .*f32 +perplexity .*KL +mean .*nats a token\\R"), table.out());
  }

  private static Object tokens(Path model, String... options) throws IOException {
    Stream<Object> words =
        Stream.of("generate", "--model", model, "--prompt", "for (int i = 0;", "--max-new-tokens", 12, "--json");
    Output output = run(Stream.concat(words, Stream.of(options)).toArray());
    assertEquals(0, output.code(), output.err());
    return JSON.std.mapFrom(output.out()).get("tokens");
  }

  private static List<String> names(Path folder) throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.map(file -> file.getFileName().toString()).sorted().toList();
    }
  }
}
