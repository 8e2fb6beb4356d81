package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.integration.Goldens.assertClose;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.Engine;
import org.mamba4j.Tensor;
import org.mamba4j.checkpoint.SafetensorsFile;
import org.mamba4j.cli.Main;

/** The command, run inside this process. */
class CommandLineTest {
  private static final String DEMO = Goldens.DEMO_MODEL.toString();

  @TempDir Path temp;

  private record Output(int code, String out, String err) {
    Output {
      assertEquals(code != 0, err.startsWith("mamba4j: ") || err.startsWith("Usage: "), err);
    }

    Map<String, Object> json() throws IOException {
      assertEquals(0, code, err);
      assertEquals(1, out.lines().count(), out);
      return JSON.std.mapFrom(out);
    }

    /** An error is one line, and nothing but the error is printed. */
    void assertError(String... parts) {
      assertEquals(1, code, err);
      assertEquals("", out);
      assertEquals(1, err.lines().count(), err);
      for (String part : parts) {
        assertTrue(err.contains(part), err);
      }
    }
  }

  private static Output run(Object... args) {
    StringWriter out = new StringWriter();
    StringWriter err = new StringWriter();
    String[] words = Arrays.stream(args).map(Object::toString).toArray(String[]::new);
    int code = Main.run(new PrintWriter(out), new PrintWriter(err), words);
    return new Output(code, out.toString(), err.toString());
  }

  static List<Path> folders() {
    return Goldens.folders();
  }

  // ---- generate ----

  @ParameterizedTest
  @ValueSource(strings = {"--prompt", "--prompt-file", "--ids"})
  void generateJson(String form) throws IOException {
    Path file = Files.writeString(temp.resolve("prompt.txt"), DemoModelTest.PROMPT);
    Object prompt =
        switch (form) {
          case "--prompt" -> DemoModelTest.PROMPT;
          case "--prompt-file" -> file;
          default -> join(DemoModelTest.PROMPT_IDS);
        };
    Object[] args = {
      "generate", "--model", DEMO, form, prompt, "--max-new-tokens", 20, "--temperature", 0, "--seed", 5, "--json"
    };
    Map<String, Object> json = run(args).json();
    assertEquals(Arrays.stream(DemoModelTest.CONTINUATION).boxed().toList(), json.get("tokens"));
    assertEquals("length", json.get("finish_reason"));
    assertTrue(((String) json.get("text")).startsWith("\n\n    public Matrix(double[] data) {"), json.toString());
    assertTrue(((Number) json.get("ttft_ms")).doubleValue() > 0, json.toString());
    assertTrue(((Number) json.get("decode_tok_s")).doubleValue() > 0, json.toString());
    assertEquals(List.of("tokens", "text", "finish_reason", "ttft_ms", "decode_tok_s"), List.copyOf(json.keySet()));
  }

  @Test
  void generateStreamsTextAndPrintsFigures() throws IOException {
    Object[] args = {"generate", "--model", DEMO, "--prompt", DemoModelTest.PROMPT, "--max-new-tokens", 20};
    Output output = run(args);
    Object[] jsonArgs = Arrays.copyOf(args, args.length + 1);
    jsonArgs[args.length] = "--json";
    assertEquals(0, output.code());
    assertEquals(run(jsonArgs).json().get("text") + System.lineSeparator(), output.out());
    String figures = "\\[20 tokens, \\d+ tokens/s, first token after .* ms \\(14 prompt tokens\\), ended by length]\\R";
    assertTrue(output.err().matches(figures), output.err());
  }

  @Test
  void generateStopsAtAText() throws IOException {
    Map<String, Object> json =
        run("generate", "--model", DEMO, "--prompt", DemoModelTest.PROMPT, "--stop", "(double", "--json").json();
    assertEquals("stop_string", json.get("finish_reason"));
    assertTrue(((String) json.get("text")).endsWith("public Matrix"), json.toString());
  }

  @Test
  void generateSamplesTheSameWithTheSameSeed() throws IOException {
    Object[] args = {
      "generate", "--model", DEMO, "--prompt", "class A {", "--max-new-tokens", 30, "--temperature", 1, "--top-k", 50,
      "--top-p", 0.95, "--min-p", 0.01, "--repetition-penalty", 1.1, "--json", "--seed", 1
    };
    Object first = run(args).json().get("tokens");
    assertEquals(first, run(args).json().get("tokens"));
    args[args.length - 1] = 2;
    assertFalse(first.equals(run(args).json().get("tokens")), "another seed, the same tokens");
  }

  @Test
  void generateWithoutATokenizer() throws IOException {
    Path folder = Goldens.folder("mamba1-tied");
    try (Goldens.Expected expected = Goldens.expected(folder)) {
      int[] wanted = expected.ids("greedy_tokens")[0];
      float[] margins = expected.tensor("greedy_margin").toFloatArray();
      int clear = 0;
      while (clear < margins.length && margins[clear] > 1e-3f) {
        clear++;
      }
      Object[] args = {
        "generate", "--model", folder, "--ids", join(expected.ids("greedy_prompt")[0]), "--max-new-tokens", wanted.length,
        "--json", "--ignore-eos"
      };
      Map<String, Object> json = run(args).json();
      List<?> tokens = (List<?>) json.get("tokens");
      assertEquals(wanted.length, tokens.size());
      assertEquals(Arrays.stream(wanted).limit(clear).boxed().toList(), tokens.subList(0, clear));
      int end = tokens.indexOf(0);
      assertTrue(end >= 0, "the golden contains its end token");
      Map<String, Object> ended = run(Arrays.copyOf(args, args.length - 1)).json();
      assertEquals(tokens.subList(0, end + 1), ended.get("tokens"));
      assertEquals("stop_token", ended.get("finish_reason"));
      assertEquals("", json.get("text"));
    }
    run("generate", "--model", folder, "--prompt", "text").assertError("tokenizer.json");
  }

  // ---- score, inspect, convert ----

  @Test
  void scoreMatchesTheReference() throws IOException {
    Path folder = Goldens.folder("mamba2-g2");
    try (Goldens.Expected expected = Goldens.expected(folder)) {
      int[] ids = expected.ids("input_ids")[0];
      float[] wanted = expected.tensor("token_logprobs").select(0, 0).toFloatArray();
      Map<String, Object> json = run("score", "--model", folder, "--ids", join(ids), "--json").json();
      List<?> found = (List<?>) json.get("logprobs");
      assertEquals(wanted.length, found.size());
      double sum = 0;
      for (int i = 0; i < wanted.length; i++) {
        assertEquals(wanted[i], ((Number) found.get(i)).doubleValue(), 1e-4, "token " + i);
        sum += wanted[i];
      }
      double perplexity = ((Number) json.get("perplexity")).doubleValue();
      assertEquals(1, perplexity / Math.exp(-sum / wanted.length), 1e-4);
    }
  }

  @Test
  void scorePrefersCodeToNonsense() throws IOException {
    double code = perplexity("for (int i = 0; i < n; i++) {\n  sum += data[i];\n}\n");
    double nonsense = perplexity("zebra quartz (( moon; int; 17 public static && % ]\n");
    assertTrue(code < nonsense / 4, code + " and " + nonsense);
    Output table = run("score", "--model", DEMO, "--prompt", "return x;");
    assertEquals(0, table.code());
    assertTrue(table.out().contains("perplexity"), table.out());
  }

  private static double perplexity(String text) throws IOException {
    return ((Number) run("score", "--model", DEMO, "--prompt", text, "--json").json().get("perplexity")).doubleValue();
  }

  @Test
  void inspect() throws IOException {
    Map<String, Object> json = run("inspect", "--model", DEMO, "--threads", 2, "--json").json();
    assertEquals("mamba2", json.get("family"));
    assertEquals(8, json.get("n_layer"));
    assertEquals(4096, json.get("vocab_size"));
    assertEquals(9126560, json.get("parameters"));
    assertEquals(2, json.get("threads"));
    assertEquals(Engine.simdTargets().getFirst(), json.get("simd_target"));
    // conv window [8, 768 + 2 * 64, 3] and SSM state [8, 12, 64, 64], float32
    assertEquals(4 * (8 * 896 * 3 + 8 * 12 * 64 * 64), json.get("state_bytes"));
    Output text = run("inspect", "--model", DEMO);
    assertEquals(0, text.code());
    assertTrue(text.out().contains("9,126,560"), text.out());
  }

  @ParameterizedTest
  @MethodSource("folders")
  void convertKeepsEveryResult(Path folder) throws IOException {
    Path converted = temp.resolve("converted");
    assertEquals(0, run("convert", "--model", folder, "--out", converted).code());
    assertTrue(Files.isRegularFile(converted.resolve("model.safetensors")));
    Path before = logits(folder, "1,2,3,4,5,6,7;9");
    Path after = logits(converted, "1,2,3,4,5,6,7;9");
    assertArrayEquals(Files.readAllBytes(before), Files.readAllBytes(after));
  }

  @Test
  void convertTakesTheTokenizerAlong() throws IOException {
    Path converted = temp.resolve("demo");
    assertEquals(0, run("convert", "--model", DEMO, "--out", converted).code());
    Object[] args = {"generate", "--model", converted, "--prompt", DemoModelTest.PROMPT, "--max-new-tokens", 20, "--json"};
    Map<String, Object> json = run(args).json();
    assertEquals(Arrays.stream(DemoModelTest.CONTINUATION).boxed().toList(), json.get("tokens"));

    run("convert", "--model", DEMO, "--out", converted).assertError("model.safetensors", "exists already", "--force");
    assertEquals(0, run("convert", "--model", DEMO, "--out", converted, "--force").code());
    run("convert", "--model", converted, "--out", converted, "--force").assertError("own folder");
  }

  @Test
  void convertWritesAConfigThatCanBeReadAgain() {
    Path converted = temp.resolve("half");
    assertEquals(0, run("convert", "--model", DEMO, "--out", converted, "--weights", "f16").code());
    assertEquals(0, run("inspect", "--model", converted).code());
  }

  @Test
  void convertLeavesNothingOfAnotherModel() {
    Path converted = temp.resolve("other");
    assertEquals(0, run("convert", "--model", DEMO, "--out", converted).code());
    assertTrue(Files.exists(converted.resolve("tokenizer.json")));
    Path other = Goldens.folder("mamba1-tied");
    assertFalse(Files.exists(other.resolve("tokenizer.json")));
    assertEquals(0, run("convert", "--model", other, "--out", converted, "--force").code());
    assertFalse(Files.exists(converted.resolve("tokenizer.json")));
  }

  @Test
  void outputsReplaceFilesOnly() throws IOException {
    Path folder = Files.createDirectory(temp.resolve("folder.safetensors"));
    run("logits", "--model", DEMO, "--ids", "1,2", "--out", folder).assertError("folder.safetensors", "not a file");
  }

  @Test
  void aPromptMayBeginWithAt() {
    assertEquals(0, run("generate", "--model", DEMO, "--prompt", "@Override", "--max-new-tokens", 1).code());
  }

  // ---- logits, op ----

  @ParameterizedTest
  @CsvSource({"mamba1-tied,''", "mamba1-tied,'2,1'", "mamba2-g2,'7'", "mamba2-g2,'1,1,30'", "falcon-mamba,'100'"})
  void logitsMatchTheReference(String name, String split) throws IOException {
    Path folder = Goldens.folder(name);
    try (Goldens.Expected expected = Goldens.expected(folder)) {
      int[][] ids = expected.ids("input_ids");
      String all = Arrays.stream(ids).map(CommandLineTest::join).collect(Collectors.joining(";"));
      Path written = split.isEmpty() ? logits(folder, all) : logits(folder, all, "--split", split, "--threads", 2);
      try (SafetensorsFile found = SafetensorsFile.open(written)) {
        assertEquals(3 * ids.length, found.names().size(), found.names().toString());
        for (int i = 0; i < ids.length; i++) {
          assertClose(expected.tensor("logits").select(0, i), found.tensor("logits." + i), 1e-5, "logits." + i);
          for (String state : List.of("conv_states", "ssm_states")) {
            Tensor wanted = expected.tensor(state).select(1, i);
            assertClose(wanted, found.tensor(state + "." + i), 1e-5, state + "." + i);
          }
        }
      }
    }
  }

  @Test
  void logitsOfARaggedBatchEqualThoseAlone() throws IOException {
    Path folder = Goldens.folder("mamba2-g1");
    try (SafetensorsFile together = SafetensorsFile.open(logits(folder, "1,2,3,4,5;6;7,8", "--split", "1,2"));
        SafetensorsFile alone = SafetensorsFile.open(logits(folder, "7,8"))) {
      assertArrayEquals(new long[] {5, 272}, together.tensor("logits.0").shape());
      assertArrayEquals(new long[] {1, 272}, together.tensor("logits.1").shape());
      assertClose(alone.tensor("logits.0"), together.tensor("logits.2"), 1e-6, "logits");
      assertClose(alone.tensor("ssm_states.0"), together.tensor("ssm_states.2"), 1e-6, "SSM states");
    }
  }

  private Path logits(Path folder, String ids, Object... more) throws IOException {
    Path file = Files.createTempFile(temp, "logits", ".safetensors");
    Object[] args = {"logits", "--model", folder, "--ids", ids, "--out", file};
    Object[] all = Arrays.copyOf(args, args.length + more.length);
    System.arraycopy(more, 0, all, args.length, more.length);
    Output output = run(all);
    assertEquals(0, output.code(), output.err());
    return file;
  }

  @ParameterizedTest
  @CsvSource({"selective-scan,op-scan", "ssd,op-ssd"})
  void opMatchesTheReference(String op, String prefix) throws IOException {
    for (Path golden : Goldens.ops(prefix)) {
      Path written = temp.resolve("op.safetensors");
      Output output = run("op", op, golden, written, "--device", "cpu");
      assertEquals(0, output.code(), output.err());
      try (SafetensorsFile expected = SafetensorsFile.open(golden);
          SafetensorsFile found = SafetensorsFile.open(written)) {
        assertClose(expected.tensor("out"), found.tensor("out"), 1e-5, golden + " out");
        assertClose(expected.tensor("last_state"), found.tensor("last_state"), 1e-5, golden + " last_state");
      }
    }
  }

  // ---- help and errors ----

  @Test
  void helpTeaches() {
    for (String command : List.of("generate", "score", "inspect", "convert", "logits")) {
      Output help = run(command, "--help");
      assertEquals(0, help.code());
      assertTrue(help.out().contains("Examples:\n  mamba4j " + command), help.out());
      assertTrue(help.out().contains("Exit codes:"), help.out());
    }
    assertTrue(run("op", "ssd", "--help").out().contains("B, C [B, L, G, N]"));
    assertTrue(run("--version").out().startsWith("mamba4j "));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "", "frobnicate", "generate", "generate --model x", "generate --model x --prompt a --ids 1",
        "generate --model x --ids 1,a", "generate --model x --prompt a --max-new-tokens 0",
        "generate --model x --prompt a --temperature -1", "generate --model x --prompt a --top-p 1.5",
        "generate --model x --prompt a --threads -1", "generate --model x --prompt a --device tpu",
        "logits --model x --ids 1,,2 --out y", "logits --model x --ids 1;;2 --out y",
        "logits --model x --ids 1 --split 0 --out y", "op", "op ssd", "op conv a b", "inspect --model"
      })
  void wrongUsage(String line) {
    Output output = run((Object[]) (line.isEmpty() ? new String[0] : line.split(" ")));
    assertEquals(2, output.code(), output.err());
    assertEquals("", output.out());
    assertTrue(output.err().contains("mamba4j"), output.err());
  }

  @Test
  void errorsSayWhatWasWrong() throws IOException {
    run("inspect", "--model", "./no/such/folder").assertError("there is no folder './no/such/folder'");
    run("inspect", "--model", "").assertError("there is no folder ''");
    run("inspect", "--model", Goldens.ROOT.resolve("README.md")).assertError("README.md", "expected GGUF");
    run("inspect", "--model", temp).assertError(temp.toString());
    run("generate", "--model", DEMO, "--ids", "0,4096").assertError("4096");
    run("generate", "--model", DEMO, "--ids", "0,-1").assertError("-1");
    run("generate", "--model", DEMO, "--prompt-file", temp.resolve("none")).assertError("there is no file", "none");
    Path latin = Files.write(temp.resolve("latin.txt"), new byte[] {'a', (byte) 0xe4, 'b'});
    run("generate", "--model", DEMO, "--prompt-file", latin).assertError("latin.txt", "UTF-8");
    run("logits", "--model", DEMO, "--ids", "0,5000", "--out", temp.resolve("x")).assertError("5000");
    assertFalse(Files.exists(temp.resolve("x")));
    run("logits", "--model", DEMO, "--ids", "0", "--out", temp.resolve("no/such/x")).assertError("no/such");
    run("op", "ssd", temp.resolve("none"), temp.resolve("x")).assertError("none");
    run("op", "ssd", Goldens.ops("op-scan").getFirst(), temp.resolve("x")).assertError("op-scan", "'x'");
    Path truncated = temp.resolve("truncated.safetensors");
    Files.write(truncated, Arrays.copyOf(Files.readAllBytes(Goldens.ops("op-ssd").getFirst()), 1000));
    run("op", "ssd", truncated, temp.resolve("x")).assertError("truncated.safetensors");
    run("score", "--model", DEMO, "--ids", "0").assertError("2");
  }

  @Test
  void verboseAddsTheStackTrace() {
    Output output = run("inspect", "--model", "./no/such/folder", "--verbose");
    assertEquals(1, output.code());
    assertTrue(output.err().contains("\tat org.mamba4j.cli"), output.err());
  }

  private static String join(int[] ids) {
    return Arrays.stream(ids).mapToObj(Integer::toString).collect(Collectors.joining(","));
  }
}
