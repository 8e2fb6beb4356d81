package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.mamba4j.integration.Goldens.assertClose;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.mamba4j.Batch;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.Session;
import org.mamba4j.StateSnapshot;
import org.mamba4j.Tensor;

/** However a sequence is fed, whatever it travels with and however many threads compute: the same result. */
class InvarianceTest {
  static List<Path> folders() {
    return Goldens.folders();
  }

  static List<Path> families() {
    return Goldens.families();
  }

  /** How far apart two ways to the same result may be; on a GPU each may be a tolerance away from the truth. */
  private static double tolerance(Path folder) {
    return Goldens.DEVICE.isCuda() ? 2 * Goldens.tolerance(folder) : 1e-6;
  }

  @ParameterizedTest
  @MethodSource("folders")
  void splits(Path folder) throws IOException {
    try (Model model = Model.load(folder, Goldens.options());
        Session session = model.newSession()) {
      int[] ids = randomIds(model, 71, 1);
      Tensor whole = session.advanceAll(ids);
      Tensor convState = session.convState();
      Tensor ssmState = session.ssmState();
      Random random = new Random(2);
      for (int longest : new int[] {1, 2, 3, 5, 17, 40}) {
        session.reset();
        Tensor parts = advanceInParts(session, ids, longest, random);
        String what = "pieces of up to " + longest;
        for (int t = 0; t < ids.length; t++) {
          assertClose(whole.select(0, t), parts.select(0, t), tolerance(folder), what + ", token " + t);
        }
        assertClose(convState, session.convState(), tolerance(folder), what + ", conv state");
        assertClose(ssmState, session.ssmState(), tolerance(folder), what + ", SSM state");
      }
    }
  }

  private static Tensor advanceInParts(Session session, int[] ids, int longest, Random random) {
    Tensor all = Tensor.allocate(Arena.ofAuto(), DType.F32, ids.length, session.model().config().vocabSize());
    for (int from = 0; from < ids.length; ) {
      int to = Math.min(ids.length, from + 1 + random.nextInt(longest));
      all.slice(0, from, to).copyFrom(session.advanceAll(Arrays.copyOfRange(ids, from, to)));
      from = to;
    }
    return all;
  }

  @ParameterizedTest
  @MethodSource("folders")
  void batches(Path folder) throws IOException {
    int[] lengths = {1, 33, 2, 19, 3, 64, 1};
    try (Model model = Model.load(folder, Goldens.options());
        Batch batch = model.newBatch(lengths.length)) {
      List<Session> sessions = new ArrayList<>();
      for (int i = 0; i < lengths.length; i++) {
        sessions.add(model.newSession());
        batch.add(sessions.get(i), randomIds(model, lengths[i], i));
      }
      batch.advanceAll();
      for (int i = 0; i < lengths.length; i++) {
        try (Session alone = model.newSession()) {
          Tensor logits = alone.advanceAll(randomIds(model, lengths[i], i));
          assertClose(logits, batch.logits(i), tolerance(folder), "logits of sequence " + i);
          assertClose(alone.convState(), sessions.get(i).convState(), tolerance(folder), "conv state of sequence " + i);
          assertClose(alone.ssmState(), sessions.get(i).ssmState(), tolerance(folder), "SSM state of sequence " + i);
        }
      }
      sessions.forEach(Session::close);
    }
  }

  @ParameterizedTest
  @MethodSource("folders")
  void threadsGiveTheSameBits(Path folder) throws IOException {
    float[] first = logitsWith(folder, Goldens.options().withThreads(1));
    for (int threads : new int[] {2, 3, 5}) {
      float[] found = logitsWith(folder, Goldens.options().withThreads(threads));
      assertArrayEquals(first, found, threads + " threads");
    }
  }

  @ParameterizedTest
  @MethodSource("families")
  void everyInstructionSetAgrees(Path folder) throws IOException {
    float[] best = logitsWith(folder, Goldens.options());
    for (String target : Engine.simdTargets()) {
      // Each rounds in its own way, so both are as far from the truth as the goldens allow.
      assertClose(best, logitsWith(folder, Goldens.options().withSimdTarget(target)), 1e-5, target);
    }
  }

  private static float[] logitsWith(Path folder, ModelOptions options) throws IOException {
    try (Model model = Model.load(folder, options);
        Session session = model.newSession()) {
      float[] prefill = session.advanceAll(randomIds(model, 67, 3)).toFloatArray();
      session.advance(1);
      float[] decode = session.logits().toFloatArray();
      float[] both = Arrays.copyOf(prefill, prefill.length + decode.length);
      System.arraycopy(decode, 0, both, prefill.length, decode.length);
      return both;
    }
  }

  @ParameterizedTest
  @MethodSource("families")
  void forksAndSnapshotsContinueAlike(Path folder) throws IOException {
    try (Model model = Model.load(folder, Goldens.options());
        Session session = model.newSession()) {
      int[] ids = randomIds(model, 40, 4);
      session.advance(ids, 0, 21);
      byte[] bytes = session.snapshot().toByteArray();
      try (Session fork = session.fork();
          Session restored = model.newSession()) {
        restored.restore(StateSnapshot.fromByteArray(bytes));
        for (Session each : List.of(session, fork, restored)) {
          each.advance(ids, 21, 19);
          assertEquals(40, each.position());
        }
        float[] wanted = session.logits().toFloatArray();
        assertArrayEquals(wanted, fork.logits().toFloatArray(), "fork");
        assertArrayEquals(wanted, restored.logits().toFloatArray(), "restored");
      }
    }
  }

  /** A sequence far longer than a chunk: the state must not drift between prefill and decode. */
  @Test
  void aLongSequenceInOnePieceAndTokenByToken() throws IOException {
    try (Model model = Model.load(Goldens.DEMO_MODEL, Goldens.options());
        Session whole = model.newSession();
        Session single = model.newSession()) {
      double tolerance = Goldens.DEVICE.isCuda() ? 2e-2 : 1e-6; // bf16 weights
      int[] ids = randomIds(model, 600, 5);
      whole.advance(ids);
      for (int id : ids) {
        single.advance(id);
      }
      assertClose(whole.logits(), single.logits(), tolerance, "logits after 600 tokens");
    }
  }

  private static int[] randomIds(Model model, int length, int seed) {
    return new Random(seed).ints(length, 0, Math.toIntExact(model.config().vocabSize())).toArray();
  }
}
