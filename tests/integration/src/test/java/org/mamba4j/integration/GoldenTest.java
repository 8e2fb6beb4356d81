package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.mamba4j.integration.Goldens.assertClose;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.mamba4j.Batch;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions.Weights;
import org.mamba4j.Session;
import org.mamba4j.Tensor;

/** Every golden checkpoint against the float64 reference. */
class GoldenTest {
  private static final float CLEAR_MARGIN = 1e-3f;

  static List<Path> folders() {
    return Goldens.folders();
  }

  @ParameterizedTest
  @MethodSource("folders")
  void logitsAndStatesOfABatch(Path folder) throws IOException {
    try (Model model = Model.load(folder, Goldens.options());
        Goldens.Expected expected = Goldens.expected(folder)) {
      check(model, expected, Goldens.tolerance(folder));
    }
  }

  @ParameterizedTest
  @MethodSource("folders")
  void copiedWeightsGiveTheSame(Path folder) throws IOException {
    try (Model model = Model.load(folder, Goldens.options().withWeights(Weights.COPIED));
        Goldens.Expected expected = Goldens.expected(folder)) {
      check(model, expected, Goldens.tolerance(folder));
    }
  }

  private static void check(Model model, Goldens.Expected expected, double tolerance) throws IOException {
    int[][] ids = expected.ids("input_ids");
    List<Session> sessions = new ArrayList<>();
    try (Batch batch = model.newBatch(ids.length)) {
      for (int[] row : ids) {
        sessions.add(model.newSession());
        batch.add(sessions.getLast(), row);
      }
      batch.advanceAll();
      for (int i = 0; i < ids.length; i++) {
        assertClose(expected.tensor("logits").select(0, i), batch.logits(i), tolerance, "logits of sequence " + i);
        assertStates(expected, "", i, sessions.get(i), tolerance);
      }
    } finally {
      sessions.forEach(Session::close);
    }
  }

  @ParameterizedTest
  @MethodSource("folders")
  void statesAfterHalf(Path folder) throws IOException {
    try (Model model = Model.load(folder, Goldens.options());
        Goldens.Expected expected = Goldens.expected(folder)) {
      double tolerance = Goldens.tolerance(folder);
      int[][] ids = expected.ids("input_ids");
      for (int i = 0; i < ids.length; i++) {
        int half = ids[i].length / 2;
        try (Session session = model.newSession()) {
          session.advance(ids[i], 0, half);
          assertEquals(half, session.position());
          assertStates(expected, "half_", i, session, tolerance);
          Tensor rest = session.advanceAll(Arrays.copyOfRange(ids[i], half, ids[i].length));
          Tensor wanted = expected.tensor("logits").select(0, i).slice(0, half, ids[i].length);
          assertClose(wanted, rest, tolerance, "logits of the second half");
          assertStates(expected, "", i, session, tolerance);
        }
      }
    }
  }

  @ParameterizedTest
  @MethodSource("folders")
  void tokenLogProbabilities(Path folder) throws IOException {
    try (Model model = Model.load(folder, Goldens.options());
        Session session = model.newSession();
        Goldens.Expected expected = Goldens.expected(folder)) {
      int[] ids = expected.ids("input_ids")[0];
      float[] found = new float[ids.length - 1];
      for (int i = 0; i < found.length; i++) {
        session.advance(ids[i]);
        float[] logits = session.logits().toFloatArray();
        double sum = 0;
        for (float logit : logits) {
          sum += Math.exp(logit);
        }
        found[i] = (float) (logits[ids[i + 1]] - Math.log(sum));
      }
      assertClose(expected.tensor("token_logprobs").select(0, 0).toFloatArray(), found, Goldens.tolerance(folder), "log-probabilities");
    }
  }

  /** The reference's own tokens are fed, so that one close call does not end the comparison. */
  @ParameterizedTest
  @MethodSource("folders")
  void greedyTokens(Path folder) throws IOException {
    try (Model model = Model.load(folder, Goldens.options());
        Session session = model.newSession();
        Goldens.Expected expected = Goldens.expected(folder)) {
      int[] wanted = expected.ids("greedy_tokens")[0];
      float[] margins = expected.tensor("greedy_margin").toFloatArray();
      int compared = 0;
      session.advance(expected.ids("greedy_prompt")[0]);
      for (int i = 0; i < wanted.length; i++) {
        if (margins[i] > Math.max(CLEAR_MARGIN, Goldens.tolerance(folder))) {
          assertEquals(wanted[i], argmax(session.logits().toFloatArray()), "greedy token " + i);
          compared++;
        }
        session.advance(wanted[i]);
      }
      assertTrue(compared > wanted.length / 2, "only " + compared + " tokens have a clear margin");
    }
  }

  private static void assertStates(
      Goldens.Expected expected, String prefix, int sequence, Session session, double tolerance)
      throws IOException {
    // [layers, batch, ...]
    Tensor conv = expected.tensor(prefix + "conv_states").select(1, sequence);
    Tensor ssm = expected.tensor(prefix + "ssm_states").select(1, sequence);
    assertClose(conv, session.convState(), tolerance, prefix + "conv_states of sequence " + sequence);
    assertClose(ssm, session.ssmState(), tolerance, prefix + "ssm_states of sequence " + sequence);
  }

  private static int argmax(float[] values) {
    int best = 0;
    for (int i = 1; i < values.length; i++) {
      best = values[i] > values[best] ? i : best;
    }
    return best;
  }
}
