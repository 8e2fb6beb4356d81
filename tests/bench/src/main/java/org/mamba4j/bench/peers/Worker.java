package org.mamba4j.bench.peers;

import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.stream.Collectors;
import org.mamba4j.ActivationType;

/**
 * One contender in a process of its own, so that none meets the threads or the memory of another. Obeys lines on standard
 * input and answers each with one line:
 *
 * <pre>
 * load            how long loading takes
 * prompt N        how long a prompt of N tokens takes
 * decode N        how long N tokens one by one take
 * greedy N ID,... the continuation by N tokens
 * </pre>
 *
 * The first three answer {@code ok SECONDS CPU_SECONDS}: of one call, as an average over calls that fill {@value
 * #MIN_SAMPLE_SECONDS} s, and of the process over all of them.
 */
final class Worker {
  /** Before each answer, for native libraries print to standard output too. */
  static final String ANSWER = "worker: ";

  static final double MIN_SAMPLE_SECONDS = 0.5;

  private static final OperatingSystemMXBean OS =
      (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

  private interface Opener {
    Contender open() throws IOException;
  }

  private interface Timed {
    double seconds() throws IOException;
  }

  private Worker() {}

  /**
   * Arguments: name of the contender, model, threads, and what it alone needs: for this library the type of
   * activations, for llama.cpp the folder of its libraries.
   */
  public static void main(String[] args) throws IOException {
    Path model = Path.of(args[1]);
    int threads = Integer.parseInt(args[2]);
    Opener opener =
        switch (args[0]) {
          case Peers.OURS -> () -> new Mamba4j(model, threads, ActivationType.valueOf(args[3]));
          case Peers.LLAMA_CPP -> () -> new LlamaCpp(Path.of(args[3]), model, threads);
          case Peers.JAVA_LLAMA -> () -> new JavaLlama(model, threads);
          default -> throw new IllegalArgumentException(args[0]);
        };
    PrintStream out = System.out;
    try (Contender contender = opener.open();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in))) {
      out.println(ANSWER + "ok");
      for (String line = in.readLine(); line != null; line = in.readLine()) {
        out.println(ANSWER + answer(line.split(" "), contender, opener));
      }
    } catch (IOException | RuntimeException | LinkageError e) {
      out.println(ANSWER + "error " + e);
    }
  }

  private static String answer(String[] words, Contender contender, Opener opener) throws IOException {
    int count = words.length > 1 ? Integer.parseInt(words[1]) : 0;
    return switch (words[0]) {
      case "load" -> time(() -> load(opener));
      case "prompt" -> time(() -> contender.prompt(count));
      case "decode" -> time(() -> contender.decode(count));
      case "greedy" -> {
        int[] prompt = Arrays.stream(words[2].split(",")).mapToInt(Integer::parseInt).toArray();
        int[] ids = contender.greedy(prompt, count);
        yield "ok " + Arrays.stream(ids).mapToObj(Integer::toString).collect(Collectors.joining(","));
      }
      default -> throw new IllegalArgumentException(words[0]);
    };
  }

  private static double load(Opener opener) throws IOException {
    long start = System.nanoTime();
    Contender second = opener.open();
    double seconds = TokenContender.secondsSince(start);
    second.close();
    return seconds;
  }

  private static String time(Timed action) throws IOException {
    long cpu = OS.getProcessCpuTime();
    double sum = 0;
    int calls = 0;
    while (sum < MIN_SAMPLE_SECONDS) {
      sum += action.seconds();
      calls++;
    }
    return "ok " + sum / calls + " " + (OS.getProcessCpuTime() - cpu) * 1e-9;
  }
}
