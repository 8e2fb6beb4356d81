package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.FieldSource;

@Timeout(120)
class BatchTest {
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
  void raggedBatchesGiveTheLogitsOfEachAlone(String name) throws IOException {
    int[] lengths = {1, 17, 3, 40, 2};
    try (Model model = Model.load(TestData.golden(name));
        Batch batch = model.newBatch(8);
        Session alone = model.newSession()) {
      List<Session> sessions = new ArrayList<>();
      for (int i = 0; i < lengths.length; i++) {
        sessions.add(model.newSession());
        batch.add(sessions.get(i), TestData.tokens(lengths[i], 256, i));
      }
      assertEquals(lengths.length, batch.size());
      batch.advanceAll();
      List<Tensor> prefill = new ArrayList<>();
      for (int i = 0; i < lengths.length; i++) {
        assertArrayEquals(new long[] {lengths[i], model.config().vocabSize()}, batch.logits(i).shape());
        assertEquals(lengths[i], sessions.get(i).position());
        assertThrows(IllegalStateException.class, sessions.get(i)::logits);
        prefill.add(batch.logits(i));
      }
      batch.clear();
      for (int i = 0; i < lengths.length; i++) {
        batch.add(sessions.get(i), 100 + i);
      }
      batch.advance();
      for (int i = 0; i < lengths.length; i++) {
        alone.reset();
        assertClose(alone.advanceAll(TestData.tokens(lengths[i], 256, i)), prefill.get(i));
        alone.advance(100 + i);
        assertClose(alone.logits(), batch.logits(i));
        assertClose(alone.ssmState(), sessions.get(i).ssmState());
        sessions.get(i).close();
      }
    }
  }

  @Test
  void misuseIsRefusedAndNoSessionAdvances() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba2-g1"));
        Model other = Model.load(TestData.golden("mamba1-tied"));
        Session a = model.newSession();
        Session b = model.newSession();
        Session third = model.newSession();
        Session foreign = other.newSession();
        Batch batch = model.newBatch(2)) {
      assertThrows(IllegalArgumentException.class, () -> model.newBatch(0));
      assertThrows(IllegalArgumentException.class, () -> model.newBatch(Integer.MAX_VALUE));
      assertThrows(IllegalStateException.class, batch::advance);
      assertThrows(IllegalArgumentException.class, () -> batch.add(foreign, 1));
      assertThrows(IllegalArgumentException.class, () -> batch.add(a));
      assertThrows(IllegalArgumentException.class, () -> batch.add(a, 1, 272));
      assertEquals(0, batch.size());
      batch.add(a, 1);
      assertThrows(IllegalArgumentException.class, () -> batch.add(a, 2));
      assertThrows(IllegalStateException.class, () -> batch.logits(0));
      batch.add(b, 2, 3);
      assertThrows(IllegalStateException.class, () -> batch.add(third, 1));
      b.close();
      assertThrows(IllegalStateException.class, batch::advance);
      assertEquals(0, a.position());
      a.advance(5);
      batch.clear();
      batch.add(a, 1);
      batch.advance();
      assertThrows(IndexOutOfBoundsException.class, () -> batch.logits(1));
      assertThrows(IllegalStateException.class, batch::advance);
      assertThrows(IllegalStateException.class, () -> batch.add(a, 1));
      assertEquals(2, a.position());
      Tensor logits = batch.logits(0);
      batch.close();
      assertThrows(IllegalStateException.class, () -> logits.getFloat(0L));
      assertThrows(IllegalStateException.class, () -> batch.logits(0));
      assertThrows(IllegalStateException.class, batch::clear);
      a.advance(1);
    }
  }

  private static void assertClose(Tensor expected, Tensor found) {
    double error = TestData.relativeError(expected.toFloatArray(), found.toFloatArray());
    assertTrue(error <= 1e-6, "relative error " + error);
  }
}
