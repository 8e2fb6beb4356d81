package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.FieldSource;
import org.mamba4j.ModelOptions.Weights;
import org.mamba4j.checkpoint.CheckpointException;

@Timeout(120)
class ModelTest {
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
  void mappedAndCopiedWeightsGiveTheSameLogits(String name) throws IOException {
    float[] mapped;
    float[] copied;
    int[] tokens = TestData.tokens(40, 256, 1);
    try (Model model = Model.load(TestData.golden(name));
        Session session = model.newSession()) {
      mapped = session.advanceAll(tokens).toFloatArray();
      assertEquals(40 * model.config().vocabSize(), mapped.length);
    }
    var progress = new ArrayList<long[]>();
    var options =
        ModelOptions.defaults()
            .withWeights(Weights.COPIED)
            .withProgress((what, done, total) -> progress.add(new long[] {done, total}));
    try (Model model = Model.load(TestData.golden(name), options);
        Session session = model.newSession()) {
      copied = session.advanceAll(tokens).toFloatArray();
      assertArrayEquals(new long[] {model.weightBytes(), model.weightBytes()}, progress.getLast());
    }
    assertArrayEquals(mapped, copied);
  }

  @Test
  void knowsItsSize() throws IOException {
    Path folder = TestData.golden("mamba1-tied");
    try (Model model = Model.load(folder.toString())) {
      ModelConfig config = model.config();
      assertEquals(Family.MAMBA1, config.family());
      long states = 4L * 128 * 3 + 4L * 128 * 16;
      assertEquals(states * Float.BYTES, model.stateBytes());
      assertEquals(model.parameterCount() * Float.BYTES, model.weightBytes());
      assertTrue(model.weightBytes() <= Files.size(folder.resolve("model.safetensors")));
      assertEquals(folder, model.folder());
      assertSame(Device.cpu(), model.engine().device());
    }
  }

  @Test
  void theFingerprintTellsModelsApart() throws IOException {
    try (Model a = Model.load(TestData.golden("mamba2-g1"));
        Model sharded = Model.load(TestData.golden("mamba2-g1-sharded"));
        Model b = Model.load(TestData.golden("mamba2-g2"))) {
      assertEquals(a.fingerprint(), sharded.fingerprint());
      assertFalse(a.fingerprint() == b.fingerprint());
    }
  }

  @Test
  void sharesAnEngineWithoutClosingIt() throws IOException {
    try (Engine engine = Engine.create(EngineOptions.defaults().withThreads(2))) {
      var options = ModelOptions.defaults().withEngine(engine);
      Model first = Model.load(TestData.golden("mamba1-tied"), options);
      Model second = Model.load(TestData.golden("mamba2-g1"), options);
      assertSame(engine, first.engine());
      first.close();
      try (second;
          Session session = second.newSession()) {
        session.advance(1, 2, 3);
      }
      assertEquals(2, engine.threads());
    }
  }

  @Test
  void anEngineMayBeClosedBeforeItsModels() throws IOException {
    Engine engine = Engine.create(EngineOptions.defaults().withThreads(2));
    try (Model model = Model.load(TestData.golden("mamba1-tied"), ModelOptions.defaults().withEngine(engine));
        Session session = model.newSession()) {
      engine.close();
      session.advance(1, 2, 3);
      assertEquals(3, session.position());
    }
  }

  @Test
  void aFailedLoadLeavesNothingBehind(@TempDir Path folder) throws IOException {
    assertThrows(CheckpointException.class, () -> Model.load(folder.resolve("absent")));
    assertThrows(IOException.class, () -> Model.load(folder));
    Files.copy(TestData.golden("mamba1-tied").resolve("config.json"), folder.resolve("config.json"));
    byte[] weights = Files.readAllBytes(TestData.golden("mamba1-tied").resolve("model.safetensors"));
    Files.write(folder.resolve("model.safetensors"), Arrays.copyOf(weights, weights.length - 100));
    assertThrows(CheckpointException.class, () -> Model.load(folder));
    Path good = TestData.golden("mamba1-tied");
    assertThrows(
        UnsupportedOperationException.class, () -> Model.load(good, ModelOptions.defaults().withSimdTarget("mmx")));
    var failing =
        ModelOptions.defaults()
            .withWeights(Weights.COPIED)
            .withProgress(
                (what, done, total) -> {
                  throw new UnsupportedOperationException("listener");
                });
    assertThrows(UnsupportedOperationException.class, () -> Model.load(good, failing));
    Engine closed = Engine.create();
    closed.close();
    assertThrows(IllegalStateException.class, () -> Model.load(good, ModelOptions.defaults().withEngine(closed)));
  }

  @Test
  void whatIsNeitherAFolderNorARepositoryIsRefused() {
    for (String name : List.of("/no/such/folder", "./absent", "", "a b")) {
      String message = assertThrows(IllegalArgumentException.class, () -> Model.load(name)).getMessage();
      assertTrue(message.startsWith("there is no folder '" + name + "', and it is not a model repos"), message);
    }
  }

  @Test
  void refusesUseAfterClose() throws IOException {
    Model model = Model.load(TestData.golden("mamba2-g2"));
    Session session = model.newSession();
    Batch batch = model.newBatch(2);
    session.advance(1, 2);
    StateSnapshot snapshot = session.snapshot();
    batch.add(session, 3);
    model.close();
    model.close();
    for (Runnable use :
        List.<Runnable>of(
            model::newSession,
            () -> model.newBatch(2),
            () -> session.advance(1),
            () -> session.advanceAll(1),
            session::reset,
            session::fork,
            session::snapshot,
            () -> session.restore(snapshot),
            session::convState,
            session::ssmState,
            batch::advance,
            batch::advanceAll)) {
      assertEquals("the model is closed", assertThrows(IllegalStateException.class, use::run).getMessage());
    }
    assertEquals(Family.MAMBA2, model.config().family());
    session.close();
    batch.close();
    batch.close();
  }

  @Test
  void releasesAModelThatNobodyCloses() throws Exception {
    forget();
    for (int i = 0; i < 300 && Engine.nativeBytes() != before; i++) {
      System.gc();
      Thread.sleep(10);
    }
  }

  private static void forget() throws IOException {
    Model model = Model.load(TestData.golden("mamba1-tied"));
    Session session = model.newSession();
    session.advance(1, 2, 3);
    Batch batch = model.newBatch(1);
    batch.add(session, 1);
    batch.advance();
  }
}
