package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.checkpoint.SafetensorsFile;

@Timeout(120)
class OpsTest {
  private static long before;
  private static Engine engine;

  @BeforeAll
  static void start() {
    before = Engine.nativeBytes();
    engine = Engine.create(EngineOptions.defaults().withThreads(2));
  }

  @AfterAll
  static void stop() {
    engine.close();
    assertEquals(before, Engine.nativeBytes());
  }

  @ParameterizedTest
  @ValueSource(strings = {"op-scan-small", "op-scan-long", "op-scan-init-groups"})
  void selectiveScanMatchesTheOracle(String name) throws IOException {
    try (SafetensorsFile in = SafetensorsFile.open(TestData.golden(name + ".safetensors"));
        Arena arena = Arena.ofConfined()) {
      Tensor lastState = Tensor.allocate(arena, DType.F32, in.tensor("last_state").shape());
      Tensor out =
          Ops.selectiveScan(
              engine,
              SelectiveScanArgs.of(
                      in.tensor("u"), in.tensor("delta"), in.tensor("A"), in.tensor("B"), in.tensor("C"))
                  .withD(in.tensor("D"))
                  .withZ(in.tensor("z"))
                  .withDeltaBias(in.tensor("delta_bias"))
                  .withDeltaSoftplus(true)
                  .withInitialState(in.tensor("initial_state"))
                  .withLastState(lastState));
      assertClose(in.tensor("out"), out);
      assertClose(in.tensor("last_state"), lastState);
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"op-ssd-small", "op-ssd-long", "op-ssd-init-groups"})
  void ssdMatchesTheOracleForAnyChunkSize(String name) throws IOException {
    try (SafetensorsFile in = SafetensorsFile.open(TestData.golden(name + ".safetensors"));
        Arena arena = Arena.ofShared()) {
      for (long chunkSize : new long[] {1, 16, 64, 256}) {
        Tensor lastState = Tensor.allocate(arena, DType.F32, in.tensor("last_state").shape());
        Tensor given = Tensor.allocate(arena, DType.F32, in.tensor("out").shape());
        Tensor out =
            Ops.ssd(
                engine,
                SsdArgs.of(in.tensor("x"), in.tensor("dt"), in.tensor("A"), in.tensor("B"), in.tensor("C"))
                    .withD(in.tensor("D"))
                    .withDtBias(in.tensor("dt_bias"))
                    .withDtSoftplus(true)
                    .withChunkSize(chunkSize)
                    .withInitialState(in.tensor("initial_state"))
                    .withOut(given)
                    .withLastState(lastState));
        assertSame(given, out);
        assertClose(in.tensor("out"), out);
        assertClose(in.tensor("last_state"), lastState);
      }
    }
  }

  @Test
  void stridedViewsAreTakenAsTheyAre() throws IOException {
    try (SafetensorsFile in = SafetensorsFile.open(TestData.golden("op-scan-small.safetensors"));
        Arena arena = Arena.ofConfined()) {
      Tensor u = in.tensor("u"); // [B, E, L]
      Tensor timeFirst = Tensor.allocate(arena, DType.F32, u.dim(0), u.dim(2), u.dim(1)); // [B, L, E]
      timeFirst.transpose(1, 2).copyFrom(u);
      Tensor outTimeFirst = Tensor.allocate(arena, DType.F32, timeFirst.shape());
      var args =
          SelectiveScanArgs.of(u, in.tensor("delta"), in.tensor("A"), in.tensor("B"), in.tensor("C"))
              .withDeltaSoftplus(true);
      Tensor expected = Ops.selectiveScan(engine, args);
      Ops.selectiveScan(
          engine,
          new SelectiveScanArgs(
              timeFirst.transpose(1, 2), args.delta(), args.a(), args.b(), args.c(), null, null, null, true, null,
              outTimeFirst.transpose(1, 2), null));
      assertClose(expected, outTimeFirst.transpose(1, 2));
    }
  }

  @Test
  void convolutionInTwoPartsIsTheWhole() {
    try (Arena arena = Arena.ofConfined()) {
      int length = 13;
      int channels = 7;
      int width = 4;
      Tensor x = random(arena, 1, 2, length, channels);
      Tensor weight = random(arena, 2, channels, width);
      Tensor bias = random(arena, 3, channels);
      var args = CausalConv1dArgs.of(x, weight).withBias(bias).withSilu(true);
      Tensor whole = Ops.causalConv1d(engine, args);

      double sum = bias.getFloat(5);
      for (int k = 0; k < width; k++) {
        sum += weight.getFloat(5, k) * x.getFloat(1, 9 - (width - 1) + k, 5);
      }
      assertEquals(sum / (1 + Math.exp(-sum)), whole.getFloat(1, 9, 5), 1e-5);

      Tensor window = Tensor.allocate(arena, DType.F32, 2, channels, width - 1);
      Tensor first =
          Ops.causalConv1d(engine, CausalConv1dArgs.of(x.slice(1, 0, 2), weight).withBias(bias).withSilu(true)
              .withInitialWindow(window).withLastWindow(window));
      Tensor rest =
          Ops.causalConv1d(engine, CausalConv1dArgs.of(x.slice(1, 2, length), weight).withBias(bias).withSilu(true)
              .withInitialWindow(window).withOut(Tensor.allocate(arena, DType.F32, 2, length - 2, channels)));
      assertClose(whole.slice(1, 0, 2), first);
      assertClose(whole.slice(1, 2, length), rest);
    }
  }

  @Test
  void normLinearEmbeddingAndSoftmaxMatchTheirDefinitions() {
    try (Arena arena = Arena.ofConfined()) {
      Tensor x = random(arena, 1, 3, 10);
      Tensor gate = random(arena, 2, 3, 10);
      Tensor weight = random(arena, 3, 10);
      Tensor normed = Ops.rmsNorm(engine, RmsNormArgs.of(x, 1e-5f).withGate(gate).withWeight(weight).withGroups(2));
      double[] gated = new double[10];
      double squares = 0;
      for (int i = 5; i < 10; i++) {
        double g = gate.getFloat(1, i);
        gated[i] = x.getFloat(1, i) * g / (1 + Math.exp(-g));
        squares += gated[i] * gated[i];
      }
      assertEquals(gated[7] / Math.sqrt(squares / 5 + 1e-5) * weight.getFloat(7), normed.getFloat(1, 7), 1e-5);

      Tensor matrix = random(arena, 4, 6, 10);
      Tensor bias = random(arena, 5, 6);
      double dot = bias.getFloat(4);
      for (int i = 0; i < 10; i++) {
        dot += (double) x.getFloat(2, i) * matrix.getFloat(4, i);
      }
      assertEquals(dot, Ops.linear(engine, x, matrix, bias).getFloat(2, 4), 1e-5);
      Tensor half = Tensor.allocate(arena, DType.BF16, 6, 10);
      half.copyFrom(matrix);
      assertEquals(dot, Ops.linear(engine, x, half, bias).getFloat(2, 4), 0.05);

      Tensor rows = Ops.embedding(engine, half, 5, 0, 5);
      assertArrayEquals(new long[] {3, 10}, rows.shape());
      assertArrayEquals(half.select(0, 5).toFloatArray(), rows.select(0, 2).toFloatArray());

      Tensor softmax = Ops.softmax(engine, x);
      Tensor logSoftmax = Ops.logSoftmax(engine, x);
      double sum = 0;
      for (int i = 0; i < 10; i++) {
        sum += Math.exp(x.getFloat(0, i));
      }
      assertEquals(Math.exp(x.getFloat(0, 3)) / sum, softmax.getFloat(0, 3), 1e-6);
      assertEquals(x.getFloat(0, 3) - Math.log(sum), logSoftmax.getFloat(0, 3), 1e-5);
      assertSame(x, Ops.softmax(engine, x, x));
      assertArrayEquals(softmax.toFloatArray(), x.toFloatArray());
    }
  }

  @Test
  void refusesWhatNativeCodeMustNotTouch() {
    try (Arena arena = Arena.ofConfined()) {
      Tensor x = random(arena, 1, 3, 8);
      Tensor onHeap = Tensor.of(MemorySegment.ofArray(new float[24]), DType.F32, 3, 8);
      assertMessage("x: off-heap memory expected", () -> Ops.softmax(engine, onHeap));
      Tensor readOnly = Tensor.of(x.segment().asReadOnly(), DType.F32, 3, 8);
      assertMessage("out: writable memory expected", () -> Ops.softmax(engine, x, readOnly));
      Tensor misaligned = Tensor.of(arena.allocate(128, 8).asSlice(2), DType.F32, 3, 8);
      assertMessage("x: memory aligned to its F32 elements expected", () -> Ops.softmax(engine, misaligned));
      Tensor integers = Tensor.allocate(arena, DType.I32, 3, 8);
      assertMessage("x: F32, F16, BF16, Q8_0 or Q4_0 expected, found I32", () -> Ops.softmax(engine, integers));
      Tensor deep = Tensor.allocate(arena, DType.F32, 1, 1, 1, 3, 8);
      assertMessage("x: 1 to 4 dimensions expected", () -> Ops.softmax(engine, deep));
      assertMessage("weight", () -> Ops.linear(engine, x, random(arena, 2, 5, 9), null));
      assertMessage("weight: a tensor expected, found null", () -> Ops.linear(engine, x, null, null));
      assertMessage("ids", () -> Ops.embedding(engine, x, 0, 3));
      assertMessage("ids", () -> Ops.embedding(engine, x, -1));
      assertMessage("u: a tensor expected", () -> Ops.selectiveScan(engine, SelectiveScanArgs.of(null, x, x, x, x)));
      assertMessage("C: a tensor expected", () -> Ops.ssd(engine, SsdArgs.of(x, x, x, x, null)));
      assertMessage("chunk_size", () -> ssdOfOnes(arena, 0));
      assertMessage("chunk_size", () -> ssdOfOnes(arena, 5000));
    }
  }

  @Test
  void refusesClosedEnginesAndClosedMemory() {
    Tensor closed;
    try (Arena arena = Arena.ofConfined()) {
      closed = random(arena, 1, 3, 8);
    }
    assertThrows(IllegalStateException.class, () -> Ops.softmax(engine, closed));
    Engine other = Engine.create();
    other.close();
    try (Arena arena = Arena.ofConfined()) {
      Tensor x = random(arena, 1, 3, 8);
      var thrown = assertThrows(IllegalStateException.class, () -> Ops.softmax(other, x));
      assertEquals("the engine is closed", thrown.getMessage());
    }
  }

  @Test
  void refusesMemoryOfAnotherThread() throws Exception {
    try (Arena arena = Arena.ofConfined();
        var executor = Executors.newSingleThreadExecutor()) {
      Tensor x = random(arena, 1, 3, 8);
      Future<?> used = executor.submit(() -> Ops.softmax(engine, x));
      var thrown = assertThrows(ExecutionException.class, used::get);
      assertEquals(WrongThreadException.class, thrown.getCause().getClass());
    }
  }

  @Test
  void memoryCannotBeFreedUnderARunningCall() throws Exception {
    int refused = 0;
    try (var executor = Executors.newSingleThreadExecutor()) {
      for (int round = 0; round < 200; round++) {
        Arena arena = Arena.ofShared();
        Tensor x = random(arena, round, 200, 100);
        CountDownLatch started = new CountDownLatch(1);
        Future<?> running =
            executor.submit(
                () -> {
                  started.countDown();
                  while (true) {
                    Ops.softmax(engine, x, x);
                  }
                });
        started.await();
        while (arena.scope().isAlive()) {
          try {
            arena.close();
          } catch (IllegalStateException inUse) {
            refused++;
          }
        }
        var thrown = assertThrows(ExecutionException.class, running::get);
        assertEquals(IllegalStateException.class, thrown.getCause().getClass());
      }
    }
    assertTrue(refused > 0, "no close met a running call");
  }

  private static Tensor ssdOfOnes(Arena arena, long chunkSize) {
    Tensor x = Tensor.allocate(arena, DType.F32, 1, 2, 1, 4);
    Tensor dt = Tensor.allocate(arena, DType.F32, 1, 2, 1);
    Tensor bc = Tensor.allocate(arena, DType.F32, 1, 2, 1, 4);
    Tensor a = Tensor.allocate(arena, DType.F32, 1);
    return Ops.ssd(engine, SsdArgs.of(x, dt, a, bc, bc).withChunkSize(chunkSize));
  }

  private static Tensor random(Arena arena, long seed, long... shape) {
    Random random = new Random(seed);
    float[] values = new float[Math.toIntExact(Arrays.stream(shape).reduce(1, (a, b) -> a * b))];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return Tensor.copyOf(arena, values, shape);
  }

  private static void assertClose(Tensor expected, Tensor found) {
    double error = TestData.relativeError(expected.toFloatArray(), found.toFloatArray());
    assertTrue(error <= 1e-5, "relative error " + error);
  }

  private static void assertMessage(String part, Runnable misuse) {
    String message = assertThrows(IllegalArgumentException.class, misuse::run).getMessage();
    assertTrue(message.contains(part), message);
  }
}
