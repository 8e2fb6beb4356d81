package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.FieldSource;
import org.mamba4j.ffi.mamba4j_h;

@Timeout(120)
class SessionTest {
  static final List<String> CHECKPOINTS = TestData.CHECKPOINTS;

  private long before;

  @BeforeEach
  void countBytes() {
    before = Engine.nativeBytes();
  }

  @AfterEach
  void nothingLeaked() {
    assertEquals(before, Engine.nativeBytes());
  }

  @ParameterizedTest
  @FieldSource("CHECKPOINTS")
  void everySplitGivesTheLogitsAndStatesOfTheWhole(String name) throws IOException {
    int[] tokens = TestData.tokens(67, 256, 2);
    try (Model model = Model.load(TestData.golden(name));
        Session whole = model.newSession()) {
      Tensor expected = whole.advanceAll(tokens);
      assertArrayEquals(expected.select(0, 66).toFloatArray(), whole.logits().toFloatArray());
      for (int[] sizes : new int[][] {{1}, {2}, {3, 1}, {5, 7}, {33}, {64, 1}}) {
        try (Session split = model.newSession()) {
          int fed = 0;
          for (int i = 0; fed < tokens.length; i++) {
            int size = Math.min(sizes[i % sizes.length], tokens.length - fed);
            split.advance(tokens, fed, size);
            fed += size;
            assertEquals(fed, split.position());
            assertClose(expected.select(0, fed - 1), split.logits());
          }
          assertClose(whole.convState(), split.convState());
          assertClose(whole.ssmState(), split.ssmState());
        }
      }
    }
  }

  @Test
  void threadsDoNotChangeABit() throws IOException {
    int[] tokens = TestData.tokens(50, 256, 3);
    for (String name : CHECKPOINTS) {
      float[] expected = null;
      for (int threads : new int[] {1, 2, 5}) {
        try (Model model = Model.load(TestData.golden(name), ModelOptions.defaults().withThreads(threads));
            Session session = model.newSession()) {
          float[] logits = session.advanceAll(tokens).toFloatArray();
          expected = expected == null ? logits : expected;
          assertArrayEquals(expected, logits, name);
        }
      }
    }
  }

  @Test
  void resetBeginsAnew() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba2-g2"));
        Session session = model.newSession()) {
      assertThrows(IllegalStateException.class, session::logits);
      session.advance(1, 2, 3);
      float[] first = session.logits().toFloatArray();
      session.advance(9);
      session.reset();
      assertEquals(0, session.position());
      assertThrows(IllegalStateException.class, session::logits);
      assertArrayEquals(new float[(int) session.convState().size()], session.convState().toFloatArray());
      session.advance(1, 2, 3);
      assertArrayEquals(first, session.logits().toFloatArray());
    }
  }

  @Test
  void aForkGoesItsOwnWay() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba1-tied"));
        Session session = model.newSession()) {
      session.advance(5, 6, 7);
      try (Session fork = session.fork()) {
        assertEquals(3, fork.position());
        assertArrayEquals(session.logits().toFloatArray(), fork.logits().toFloatArray());
        session.advance(1);
        fork.advance(2);
        assertNotEquals(
            Arrays.toString(session.logits().toFloatArray()), Arrays.toString(fork.logits().toFloatArray()));
        session.reset();
        session.advance(5, 6, 7, 2);
        assertClose(session.logits(), fork.logits());
      }
    }
  }

  @Test
  void aSnapshotBringsTheStateBackAlsoFromBytes() throws IOException {
    for (String name : CHECKPOINTS) {
      try (Model model = Model.load(TestData.golden(name));
          Session session = model.newSession()) {
        session.advance(TestData.tokens(20, 256, 4));
        StateSnapshot snapshot = session.snapshot();
        assertEquals(20, snapshot.position());
        assertEquals(model.fingerprint(), snapshot.modelFingerprint());
        session.advance(7, 8);
        float[] expected = session.logits().toFloatArray();
        byte[] bytes = snapshot.toByteArray();
        assertEquals(bytes.length, snapshot.byteSize());
        for (StateSnapshot restored : List.of(snapshot, StateSnapshot.fromByteArray(bytes))) {
          try (Session other = model.newSession()) {
            other.advance(1, 1, 1);
            other.restore(restored);
            assertEquals(20, other.position());
            assertThrows(IllegalStateException.class, other::logits);
            other.advance(7, 8);
            assertArrayEquals(expected, other.logits().toFloatArray(), name);
          }
        }
      }
    }
  }

  @Test
  void aForeignOrDamagedSnapshotIsRefusedAndChangesNothing() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba2-g1"));
        Model other = Model.load(TestData.golden("mamba2-g2"));
        Session session = model.newSession();
        Session foreign = other.newSession()) {
      session.advance(1, 2, 3);
      float[] state = session.ssmState().toFloatArray();
      foreign.advance(1);
      StateSnapshot wrong = foreign.snapshot();
      assertThrows(IllegalArgumentException.class, () -> session.restore(wrong));

      byte[] bytes = session.snapshot().toByteArray();
      for (int damaged : new int[] {0, 5, 9, 17, 25, 33, 41, 48, bytes.length - 1}) {
        byte[] copy = bytes.clone();
        copy[damaged] ^= 1;
        assertThrows(
            IllegalArgumentException.class,
            () -> session.restore(StateSnapshot.fromByteArray(copy)),
            "byte " + damaged);
      }
      for (int length : new int[] {0, 47, 48, 49, bytes.length - 4, bytes.length - 1}) {
        assertThrows(
            IllegalArgumentException.class, () -> StateSnapshot.fromByteArray(Arrays.copyOf(bytes, length)));
      }
      assertEquals(3, session.position());
      assertArrayEquals(state, session.ssmState().toFloatArray());
      assertEquals(model.config().vocabSize(), session.logits().size());
    }
  }

  @Test
  void afterAnInternalFailureOnlyAGoodSnapshotHelps() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba2-g1"));
        Model other = Model.load(TestData.golden("mamba2-g2"));
        Session session = model.newSession();
        Session foreign = other.newSession()) {
      session.advance(1);
      StateSnapshot good = session.snapshot();
      session.advance(2);
      float[] expected = session.logits().toFloatArray();
      StateSnapshot wrong = foreign.snapshot();
      session.advancedInBatch(mamba4j_h.M4J_ERR_INTERNAL(), 1);
      assertThrows(IllegalStateException.class, () -> session.advance(2));
      assertThrows(IllegalArgumentException.class, () -> session.restore(wrong));
      assertThrows(IllegalStateException.class, () -> session.advance(2));
      session.restore(good);
      assertEquals(1, session.position());
      session.advance(2);
      assertArrayEquals(expected, session.logits().toFloatArray());
    }
  }

  @Test
  void wrongTokensAreRefusedByIndexAndValueAndChangeNothing() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba1-tied"));
        Session session = model.newSession()) {
      session.advance(1, 2);
      float[] expected = session.logits().toFloatArray();
      assertMessage("tokens[2]: an id of 0 to 271 expected (vocabulary of 272), found 272", session, 1, 2, 272);
      assertMessage("tokens[0]: an id of 0 to 271 expected (vocabulary of 272), found -1", session, -1);
      assertMessage("tokens: at least one expected, found none", session);
      assertThrows(IllegalArgumentException.class, () -> session.advance(272));
      assertThrows(IndexOutOfBoundsException.class, () -> session.advance(new int[3], 2, 2));
      assertThrows(IndexOutOfBoundsException.class, () -> session.advance(new int[3], -1, 2));
      assertThrows(NullPointerException.class, () -> session.advance((int[]) null));
      assertEquals(2, session.position());
      assertArrayEquals(expected, session.logits().toFloatArray());
    }
  }

  @Test
  void logitsTooLargeForMemoryAreRefusedAndChangeNothing() throws IOException {
    long direct = Runtime.getRuntime().maxMemory(); // the default of -XX:MaxDirectMemorySize
    try (Model model = Model.load(TestData.golden("mamba1-tied"));
        Session session = model.newSession()) {
      int tooMany = Math.toIntExact(direct / (model.config().vocabSize() * Float.BYTES) + 1);
      session.advance(1);
      var thrown = assertThrows(MambaException.class, () -> session.advanceAll(new int[tooMany]));
      assertTrue(thrown.getMessage().startsWith("logits: no memory for F32 [" + tooMany), thrown.getMessage());
      session.advance(2);
      assertEquals(2, session.position());
    }
  }

  @Test
  void logitsAreOneViewThatEndsWithTheSession() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba1-tied"))) {
      Session session = model.newSession();
      session.advance(1);
      Tensor logits = session.logits();
      session.advance(2);
      assertSame(logits, session.logits());
      Tensor all = session.advanceAll(1, 2);
      Tensor state = session.ssmState();
      session.close();
      session.close();
      assertThrows(IllegalStateException.class, () -> logits.getFloat(0L));
      for (Runnable use :
          List.<Runnable>of(
              () -> session.advance(1), session::logits, session::reset, session::fork, session::snapshot,
              session::convState)) {
        assertEquals("the session is closed", assertThrows(IllegalStateException.class, use::run).getMessage());
      }
      assertEquals(2 * 272, all.toFloatArray().length);
      assertEquals(state.size(), state.toFloatArray().length);
    }
  }

  private static void assertMessage(String expected, Session session, int... tokens) {
    assertEquals(expected, assertThrows(IllegalArgumentException.class, () -> session.advance(tokens)).getMessage());
    assertEquals(expected, assertThrows(IllegalArgumentException.class, () -> session.advanceAll(tokens)).getMessage());
  }

  private static void assertClose(Tensor expected, Tensor found) {
    double error = TestData.relativeError(expected.toFloatArray(), found.toFloatArray());
    assertTrue(error <= 1e-6, "relative error " + error);
  }
}
