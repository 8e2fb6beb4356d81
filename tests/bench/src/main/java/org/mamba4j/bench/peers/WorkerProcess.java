package org.mamba4j.bench.peers;

import java.io.BufferedReader;
import java.io.BufferedWriter;
import java.io.File;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** A {@link Worker}, seen from the process that asks it. */
final class WorkerProcess implements AutoCloseable {
  private final Process process;
  private final BufferedReader in;
  private final BufferedWriter out;

  /**
   * Starts the process and waits until the model is loaded.
   *
   * @param extra the last of {@link Worker}'s arguments
   * @throws IOException if the contender cannot load the model; the message says why
   */
  WorkerProcess(String contender, Path model, int threads, String extra, File log) throws IOException {
    List<String> command =
        new ArrayList<>(
            List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:+UseSerialGC",
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty("java.class.path"),
                Worker.class.getName(),
                contender,
                model.toString(),
                Integer.toString(threads),
                extra));
    process =
        new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.appendTo(log)).start();
    in = process.inputReader();
    out = process.outputWriter();
    try {
      answer();
    } catch (IOException e) {
      close();
      throw e;
    }
  }

  Sample measure(String request) throws IOException {
    SystemTime before = SystemTime.now();
    String[] words = ask(request).split(" ");
    double foreign = SystemTime.now().foreignShareSince(before, Double.parseDouble(words[1]));
    return new Sample(Double.parseDouble(words[0]), foreign);
  }

  String ask(String request) throws IOException {
    out.write(request + "\n");
    out.flush();
    return answer();
  }

  private String answer() throws IOException {
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      if (line.startsWith(Worker.ANSWER)) {
        String[] parts = line.substring(Worker.ANSWER.length()).split(" ", 2);
        if (!parts[0].equals("ok")) {
          throw new IOException(parts[1]);
        }
        return parts.length > 1 ? parts[1] : "";
      }
    }
    throw new IOException("the process ended without an answer; its log says more");
  }

  /** The worker ends with its input. */
  @Override
  public void close() throws IOException {
    try {
      process.outputWriter().close();
      if (!process.waitFor(20, TimeUnit.SECONDS)) {
        process.destroyForcibly();
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      process.destroyForcibly();
    }
  }
}
