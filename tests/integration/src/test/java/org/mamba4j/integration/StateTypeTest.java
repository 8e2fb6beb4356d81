package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestReporter;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.mamba4j.Engine;
import org.mamba4j.EngineOptions;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.Ops;
import org.mamba4j.Sampler;
import org.mamba4j.SamplingOptions;
import org.mamba4j.Session;
import org.mamba4j.StateType;
import org.mamba4j.Tensor;

/** States in bfloat16: on a GPU half the memory and a small error, on the CPU an error that says so. */
@Timeout(120)
class StateTypeTest {
  static List<Path> families() {
    return Goldens.families();
  }

  private static ModelOptions bfloat16() {
    return Goldens.options().withStateType(StateType.BF16);
  }

  @ParameterizedTest
  @MethodSource("families")
  void theCpuRefusesIt(Path folder) {
    long before = Engine.nativeBytes();
    ModelOptions options = ModelOptions.defaults().withStateType(StateType.BF16);
    var e = assertThrows(UnsupportedOperationException.class, () -> Model.load(folder, options));
    assertTrue(e.getMessage().contains("config.state_type"), e.getMessage());
    assertTrue(e.getMessage().contains("the CPU keeps float32"), e.getMessage());
    assertEquals(before, Engine.nativeBytes());
  }

  @ParameterizedTest
  @MethodSource("families")
  void halfTheMemoryAndASmallError(Path folder) throws IOException {
    assumeTrue(Goldens.DEVICE.isCuda());
    try (Model wide = Model.load(folder, Goldens.options());
        Model model = Model.load(folder, bfloat16());
        Session expected = wide.newSession();
        Session session = model.newSession();
        Session again = model.newSession()) {
      long convBytes = 4 * session.convState().size();
      assertEquals((wide.stateBytes() - convBytes) / 2, model.stateBytes() - convBytes);
      assertEquals(wide.fingerprint(), model.fingerprint());
      // Each layer's state is rounded nine times, each time by less than 4e-3 of its norm.
      double allowed = 4e-3 * Math.sqrt(9) * model.config().layers();
      Random random = new Random(1);
      for (int length : new int[] {40, 1, 1, 3, 1, 70, 1}) {
        int[] ids = random.ints(length, 0, Math.toIntExact(model.config().vocabSize())).toArray();
        expected.advance(ids);
        session.advance(ids);
        again.advance(ids);
        float[] logits = session.logits().toFloatArray();
        assertArrayEquals(logits, again.logits().toFloatArray());
        Goldens.assertClose(expected.logits().toFloatArray(), logits, allowed, "logits");
      }
      Goldens.assertClose(expected.ssmState(), session.ssmState(), allowed, "SSM state");
    }
  }

  /** From float32 to bfloat16 and back, forks on the way. */
  @ParameterizedTest
  @MethodSource("families")
  void snapshotsMove(Path folder) throws IOException {
    assumeTrue(Goldens.DEVICE.isCuda());
    try (Model cpu = Model.load(folder);
        Model model = Model.load(folder, bfloat16());
        Session origin = cpu.newSession();
        Session session = model.newSession();
        Session back = cpu.newSession()) {
      origin.advance(3, 1, 4, 1, 5);
      session.restore(origin.snapshot());
      assertEquals(5, session.position());
      Goldens.assertClose(origin.ssmState(), session.ssmState(), 0x1p-8, "rounded to nearest");
      back.restore(session.snapshot());
      assertArrayEquals(session.ssmState().toFloatArray(), back.ssmState().toFloatArray());
      try (Session fork = session.fork()) {
        fork.advance(9);
        session.advance(9);
        assertArrayEquals(session.logits().toFloatArray(), fork.logits().toFloatArray());
      }
    }
  }

  /** What the model writes, read again token by token: what it costs where it counts. */
  @Test
  void perplexityOfTheDemoModel(TestReporter reporter) throws IOException {
    assumeTrue(Goldens.DEVICE.isCuda());
    try (Model wide = Model.load(Goldens.DEMO_MODEL, Goldens.options());
        Model model = Model.load(Goldens.DEMO_MODEL, bfloat16())) {
      int[] text = new int[4000];
      var options = SamplingOptions.random(1, 7);
      try (Session writer = wide.newSession()) {
        Sampler sampler = new Sampler(options, Math.toIntExact(wide.config().vocabSize()));
        text[0] = 0;
        for (int i = 1; i < text.length; i++) {
          text[i] = writer.next(sampler, text[i - 1]);
        }
      }
      double expected = logProb(wide, text);
      double found = logProb(model, text);
      reporter.publishEntry("perplexity, states in float32", String.valueOf(Math.exp(-expected)));
      reporter.publishEntry("perplexity, states in bfloat16", String.valueOf(Math.exp(-found)));
      assertEquals(expected, found, 5e-3);
    }
  }

  /** Mean over the text, a token a call. */
  private static double logProb(Model model, int[] text) {
    double sum = 0;
    try (Engine engine = Engine.create(EngineOptions.defaults().withThreads(1));
        Session session = model.newSession()) {
      for (int i = 0; i + 1 < text.length; i++) {
        session.advance(text[i]);
        Tensor logits = session.logits();
        sum += Ops.logSoftmax(engine, logits.reshape(1, logits.size())).getFloat(0, text[i + 1]);
      }
    }
    return sum / (text.length - 1);
  }
}
