package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.jr.ob.JSON;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The command and the example of the README as processes of their own. */
class ProcessTest {
  private static final String DEMO = "tests/models/mamba2-java-9m";

  @Test
  void generatePrintsNothingButJson() throws Exception {
    String[] args = {"generate", "--model", DEMO, "--prompt", DemoModelTest.PROMPT, "--max-new-tokens", "20", "--json"};
    JavaProcess.Result result = JavaProcess.command(Map.of(), args).finish();
    assertEquals(0, result.code(), result.err());
    assertEquals("", result.err());
    Map<String, Object> json = JSON.std.mapFrom(result.out());
    assertEquals(Arrays.stream(DemoModelTest.CONTINUATION).boxed().toList(), json.get("tokens"));
  }

  @Test
  void interruptEndsAGenerationInGoodOrder() throws Exception {
    String[] args = {"generate", "--model", DEMO, "--ids", "0", "--max-new-tokens", "100000000", "--temperature", "1"};
    JavaProcess java = JavaProcess.command(Map.of(), args);
    assertTrue(java.process.getInputStream().read() >= 0, "some text");
    java.process.toHandle().destroy(); // SIGTERM, which the JVM treats as it does Ctrl-C
    JavaProcess.Result result = java.finish();
    assertTrue(result.err().contains("ended by cancelled]"), result.err());
  }

  @Test
  void theExampleOfTheReadmeRuns(@TempDir Path temp) throws Exception {
    String readme = Files.readString(Goldens.ROOT.resolve("README.md"));
    Matcher block = Pattern.compile("```java\n(.*?)```", Pattern.DOTALL).matcher(readme);
    assertTrue(block.find(), "README.md has a Java example");
    String source = block.group(1);
    Matcher name = Pattern.compile("class (\\w+)").matcher(source);
    assertTrue(name.find(), source);
    Path file = Files.writeString(temp.resolve(name.group(1) + ".java"), source);
    String[] javac = {
      "-Xlint:all,-path", "-Werror", "-cp", JavaProcess.CLASS_PATH, "-d", temp.toString(), file.toString()
    };
    assertEquals(0, ToolProvider.getSystemJavaCompiler().run(null, null, null, javac), source);
    JavaProcess.Result result =
        JavaProcess.start(Map.of(), JavaProcess.CLASS_PATH + ":" + temp, name.group(1)).finish();
    assertEquals(0, result.code(), result.err());
    assertTrue(result.out().length() > 100, result.out());
  }
}
