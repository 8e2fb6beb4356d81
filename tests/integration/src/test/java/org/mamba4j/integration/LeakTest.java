package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.mamba4j.Batch;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.Model;
import org.mamba4j.ModelOptions;
import org.mamba4j.Ops;
import org.mamba4j.SelectiveScanArgs;
import org.mamba4j.Session;
import org.mamba4j.StateSnapshot;
import org.mamba4j.Tensor;

/** Whatever fails, native memory in use returns to where it was and the library goes on working. */
class LeakTest {
  private static final int ROUNDS = 20;

  @TempDir Path temp;
  private long before;

  @BeforeEach
  void remember() {
    Engine.create().close();
    before = Engine.nativeBytes();
  }

  private void assertNothingLeft() throws IOException {
    assertEquals(before, Engine.nativeBytes());
    try (Model model = Model.load(Goldens.folder("mamba1-tied"));
        Session session = model.newSession()) {
      session.advance(1, 2, 3);
      assertTrue(Engine.nativeBytes() > before);
    }
    assertEquals(before, Engine.nativeBytes());
  }

  @Test
  void damagedCheckpoints() throws IOException {
    byte[] weights = Files.readAllBytes(Goldens.folder("mamba2-g1").resolve("model.safetensors"));
    Files.copy(Goldens.folder("mamba2-g1").resolve("config.json"), temp.resolve("config.json"));
    for (int length : new int[] {0, 7, 8, 100, weights.length / 2, weights.length - 1}) {
      Files.write(temp.resolve("model.safetensors"), Arrays.copyOf(weights, length));
      IOException e = assertThrows(IOException.class, () -> Model.load(temp));
      assertTrue(e.getMessage().contains("model.safetensors"), e.getMessage());
    }
    assertNothingLeft();
  }

  @Test
  void aConfigurationOfAnotherModel() throws IOException {
    Files.copy(Goldens.folder("mamba2-g2").resolve("config.json"), temp.resolve("config.json"));
    Files.copy(Goldens.folder("mamba2-g1").resolve("model.safetensors"), temp.resolve("model.safetensors"));
    for (int i = 0; i < ROUNDS; i++) {
      assertThrows(IOException.class, () -> Model.load(temp));
    }
    assertNothingLeft();
  }

  @Test
  void wrongUseOfAModel() throws IOException {
    for (int i = 0; i < ROUNDS; i++) {
      Model model = Model.load(Goldens.folder("mamba2-g2"));
      Session session = model.newSession();
      Batch batch = model.newBatch(2);
      assertThrows(IllegalArgumentException.class, () -> session.advance(1, 256));
      assertThrows(IllegalArgumentException.class, () -> session.advance(-1));
      assertThrows(IllegalArgumentException.class, () -> session.advance());
      assertThrows(IllegalStateException.class, session::logits);
      assertThrows(IllegalStateException.class, batch::advance);
      assertEquals(0, session.position());
      session.advance(1, 2);
      byte[] snapshot = session.snapshot().toByteArray();
      try (Model other = Model.load(Goldens.folder("mamba2-g1"));
          Session foreign = other.newSession()) {
        StateSnapshot taken = StateSnapshot.fromByteArray(snapshot);
        assertThrows(IllegalArgumentException.class, () -> foreign.restore(taken));
        assertThrows(IllegalArgumentException.class, () -> batch.add(foreign, 1));
      }
      model.close();
      assertThrows(IllegalStateException.class, () -> session.advance(3));
      assertThrows(IllegalStateException.class, model::newSession);
      session.close();
      batch.close();
    }
    assertNothingLeft();
  }

  @Test
  void wrongEngines() throws IOException {
    for (int i = 0; i < ROUNDS; i++) {
      ModelOptions unknown = ModelOptions.defaults().withSimdTarget("abacus");
      RuntimeException e =
          assertThrows(RuntimeException.class, () -> Model.load(Goldens.folder("mamba1-tied"), unknown));
      assertTrue(e.getMessage().contains("abacus"), e.getMessage());
    }
    assertNothingLeft();
  }

  @Test
  void wrongTensors() throws IOException {
    try (Arena arena = Arena.ofConfined();
        Engine engine = Engine.create()) {
      Tensor u = Tensor.allocate(arena, DType.F32, 1, 4, 3);
      Tensor a = Tensor.allocate(arena, DType.F32, 4, 2);
      Tensor b = Tensor.allocate(arena, DType.F32, 1, 1, 2, 3);
      Tensor tooLong = Tensor.allocate(arena, DType.F32, 1, 1, 2, 4);
      Tensor half = Tensor.allocate(arena, DType.F16, 1, 4, 3);
      for (int i = 0; i < ROUNDS; i++) {
        assertThrows(
            IllegalArgumentException.class, () -> Ops.selectiveScan(engine, SelectiveScanArgs.of(u, u, a, b, tooLong)));
        assertThrows(
            UnsupportedOperationException.class,
            () -> Ops.selectiveScan(engine, SelectiveScanArgs.of(half, u, a, b, b)));
      }
      assertEquals(12, Ops.selectiveScan(engine, SelectiveScanArgs.of(u, u, a, b, b)).size());
    }
    assertNothingLeft();
  }
}
