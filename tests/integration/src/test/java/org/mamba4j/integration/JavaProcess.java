package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** A JVM of its own, started in the project's folder with the class path of the tests. */
final class JavaProcess {
  static final String CLASS_PATH =
      System.getProperty("surefire.test.class.path", System.getProperty("java.class.path"));

  private static final String COMMAND = "org.mamba4j.cli.Main";

  final Process process;
  private final Path err;

  private JavaProcess(Process process, Path err) {
    this.process = process;
    this.err = err;
  }

  /** What a process printed and its exit code. */
  record Result(int code, String out, String err) {}

  /** Starts the mamba4j command. */
  static JavaProcess command(Map<String, String> environment, String... args) throws IOException {
    return start(environment, CLASS_PATH, COMMAND, args);
  }

  static JavaProcess start(Map<String, String> environment, String classPath, String mainClass, String... args)
      throws IOException {
    List<String> words = new ArrayList<>();
    words.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    words.addAll(List.of("--enable-native-access=ALL-UNNAMED", "-Dslf4j.internal.verbosity=ERROR"));
    words.addAll(List.of("-cp", classPath, mainClass));
    words.addAll(List.of(args));
    Path err = Files.createTempFile("mamba4j-test", ".err");
    ProcessBuilder builder = new ProcessBuilder(words).directory(Goldens.ROOT.toFile()).redirectError(err.toFile());
    builder.environment().putAll(environment);
    return new JavaProcess(builder.start(), err);
  }

  /** Waits for its end. */
  Result finish() throws IOException, InterruptedException {
    try {
      String out = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertTrue(process.waitFor(120, TimeUnit.SECONDS), "the process ends");
      return new Result(process.exitValue(), out, Files.readString(err));
    } finally {
      process.destroyForcibly();
      Files.deleteIfExists(err);
    }
  }
}
