package org.mamba4j.bench;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.Session;
import org.mamba4j.Tensor;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;

/** One token of one sequence. */
@State(Scope.Thread)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
public class SessionAdvance {
  /** System property: the folder with the models. */
  static final String MODELS = "mamba4j.bench.models";

  private static final int TOKEN = 13;
  private static final int SERVED = 8;

  @Param({})
  public String model;

  @Param({})
  public int threads;

  private final List<Session> sessions = new ArrayList<>();
  private Model loaded;
  private Session session;
  private int turn;

  @Setup
  public void load() throws IOException {
    loaded = load(model, threads);
    for (int i = 0; i < SERVED; i++) {
      sessions.add(loaded.newSession());
      sessions.getLast().advance(TOKEN + i);
    }
    session = sessions.getFirst();
  }

  static Model load(String model, int threads) throws IOException {
    Path folder = Path.of(System.getProperty(MODELS), model + "-hf");
    return Model.load(folder, ModelOptions.defaults().withThreads(threads));
  }

  @TearDown
  public void close() {
    sessions.forEach(Session::close);
    loaded.close();
  }

  /** The step alone, as the native harness takes it. */
  @Benchmark
  @BenchmarkMode(Mode.AverageTime)
  public Tensor step() {
    session.advance(TOKEN);
    return session.logits();
  }

  /** A step as a service takes it: several requests in turn, each continued by its most probable token. */
  @Benchmark
  @BenchmarkMode(Mode.SampleTime)
  public Tensor servedStep() {
    Session next = sessions.get(turn);
    turn = (turn + 1) % SERVED;
    next.advance(best(next.logits().segment()));
    return next.logits();
  }

  private static int best(MemorySegment logits) {
    int count = (int) (logits.byteSize() / Float.BYTES);
    int best = 0;
    for (int i = 1; i < count; i++) {
      if (logits.getAtIndex(JAVA_FLOAT, i) > logits.getAtIndex(JAVA_FLOAT, best)) {
        best = i;
      }
    }
    return best;
  }
}
