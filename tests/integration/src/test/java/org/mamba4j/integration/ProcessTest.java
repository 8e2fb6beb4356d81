package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The command and the example of the README as processes of their own, on the class path. */
class ProcessTest {
  private static final String CLASS_PATH =
      System.getProperty("surefire.test.class.path", System.getProperty("java.class.path"));

  @TempDir Path temp;

  @Test
  void generatePrintsNothingButJson() throws Exception {
    Path err = temp.resolve("err");
    Process process =
        java(
            err,
            CLASS_PATH,
            "org.mamba4j.cli.Main",
            "generate",
            "--model",
            "tests/models/mamba2-java-9m",
            "--prompt",
            DemoModelTest.PROMPT,
            "--max-new-tokens",
            "20",
            "--json");
    String out = finish(process);
    assertEquals(0, process.exitValue(), Files.readString(err));
    assertEquals("", Files.readString(err));
    Map<String, Object> json = JSON.std.mapFrom(out);
    assertEquals(Arrays.stream(DemoModelTest.CONTINUATION).boxed().toList(), json.get("tokens"));
  }

  @Test
  void interruptEndsAGenerationInGoodOrder() throws Exception {
    Path err = temp.resolve("err");
    Process process =
        java(
            err,
            CLASS_PATH,
            "org.mamba4j.cli.Main",
            "generate",
            "--model",
            "tests/models/mamba2-java-9m",
            "--ids",
            "0",
            "--max-new-tokens",
            "100000000");
    assertTrue(process.getInputStream().read() >= 0, "some text");
    process.toHandle().destroy(); // SIGTERM, which the JVM treats as Ctrl-C
    finish(process);
    assertTrue(Files.readString(err).contains("ended by cancelled"), Files.readString(err));
  }

  @Test
  void theExampleOfTheReadmeRuns() throws Exception {
    String readme = Files.readString(Goldens.ROOT.resolve("README.md"));
    Matcher block = Pattern.compile("```java\n(.*?)```", Pattern.DOTALL).matcher(readme);
    assertTrue(block.find(), "README.md has a Java example");
    String source = block.group(1);
    Matcher name = Pattern.compile("class (\\w+)").matcher(source);
    assertTrue(name.find(), source);
    Path file = Files.writeString(temp.resolve(name.group(1) + ".java"), source);
    int status =
        ToolProvider.getSystemJavaCompiler()
            .run(null, null, null, "-Xlint:all", "-Werror", "-cp", CLASS_PATH, "-d", temp.toString(), file.toString());
    assertEquals(0, status, source);
    Path err = temp.resolve("err");
    Process process = java(err, CLASS_PATH + ":" + temp, name.group(1));
    String out = finish(process);
    assertEquals(0, process.exitValue(), Files.readString(err));
    assertTrue(out.length() > 100, out);
  }

  private static Process java(Path err, String classPath, String... words) throws IOException {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(List.of("--enable-native-access=ALL-UNNAMED", "-Dslf4j.internal.verbosity=ERROR", "-cp", classPath));
    command.addAll(List.of(words));
    return new ProcessBuilder(command).directory(Goldens.ROOT.toFile()).redirectError(err.toFile()).start();
  }

  private static String finish(Process process) throws Exception {
    String out = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertTrue(process.waitFor(60, TimeUnit.SECONDS), "the process ends");
    return out;
  }
}
