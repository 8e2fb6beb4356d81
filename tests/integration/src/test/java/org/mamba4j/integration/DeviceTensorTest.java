package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;
import static org.mamba4j.integration.Goldens.assertClose;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.BiFunction;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.mamba4j.CausalConv1dArgs;
import org.mamba4j.DType;
import org.mamba4j.Device;
import org.mamba4j.Engine;
import org.mamba4j.EngineOptions;
import org.mamba4j.MambaException;
import org.mamba4j.Ops;
import org.mamba4j.RmsNormArgs;
import org.mamba4j.SelectiveScanArgs;
import org.mamba4j.SsdArgs;
import org.mamba4j.Tensor;
import org.mamba4j.checkpoint.SafetensorsFile;
import org.mamba4j.checkpoint.SafetensorsWriter;

/** Tensors in the memory of the device under test, and operations on them. */
class DeviceTensorTest {
  private static final boolean GPU = Goldens.DEVICE.isCuda();
  private static final List<DType> FLOATS = List.of(DType.F32, DType.F16, DType.BF16);

  private final Random random = new Random(7);
  private Engine engine;
  private Engine cpu;
  private Arena arena;
  private long heldBefore;

  @BeforeEach
  void start() {
    engine = Engine.create(EngineOptions.defaults().withDevice(Goldens.DEVICE).withThreads(2));
    cpu = Engine.create(EngineOptions.defaults().withThreads(2).withSimdTarget("reference"));
    arena = Arena.ofShared();
    heldBefore = engine.deviceBytes();
  }

  @AfterEach
  void stop() {
    arena.close();
    engine.close();
    cpu.close();
  }

  @Test
  void scansMatchTheOracle() throws IOException {
    checkScans(DType.F32, 1e-5);
  }

  @Test
  void ssdMatchesTheOracle() throws IOException {
    checkSsd(DType.F32, 1e-5);
  }

  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16"})
  void halvesMatchTheOracleOnAGpu(DType type) throws IOException {
    assumeTrue(GPU);
    checkScans(type, 2e-2);
    checkSsd(type, 2e-2);
  }

  /** The goldens of the scan, with activations of this type. */
  private void checkScans(DType type, double tolerance) throws IOException {
    for (Path golden : Goldens.ops("op-scan")) {
      try (SafetensorsFile in = SafetensorsFile.open(golden)) {
        Tensor state = Tensor.allocate(arena, engine, DType.F32, in.tensor("last_state").shape());
        Tensor out =
            Ops.selectiveScan(
                engine,
                SelectiveScanArgs.of(
                        there(in, "u", type),
                        there(in, "delta", type),
                        there(in, "A"),
                        there(in, "B", type),
                        there(in, "C", type))
                    .withD(there(in, "D"))
                    .withZ(there(in, "z", type))
                    .withDeltaBias(there(in, "delta_bias"))
                    .withDeltaSoftplus(true)
                    .withInitialState(there(in, "initial_state"))
                    .withLastState(state));
        assertEquals(type, out.dtype());
        assertClose(in.tensor("out"), here(out), tolerance, golden + " out");
        assertClose(in.tensor("last_state"), here(state), tolerance, golden + " last_state");
      }
    }
  }

  private void checkSsd(DType type, double tolerance) throws IOException {
    for (Path golden : Goldens.ops("op-ssd")) {
      try (SafetensorsFile in = SafetensorsFile.open(golden)) {
        Tensor state = there(in, "initial_state");
        Tensor out =
            Ops.ssd(
                engine,
                SsdArgs.of(
                        there(in, "x", type),
                        there(in, "dt", type),
                        there(in, "A"),
                        there(in, "B", type),
                        there(in, "C", type))
                    .withD(there(in, "D"))
                    .withDtBias(there(in, "dt_bias"))
                    .withDtSoftplus(true)
                    .withInitialState(state)
                    .withLastState(state));
        assertEquals(Goldens.DEVICE, out.device());
        assertEquals(type, out.dtype());
        assertClose(in.tensor("out"), here(out), tolerance, golden + " out");
        assertClose(in.tensor("last_state"), here(state), tolerance, golden + " last_state");
      }
    }
  }

  @Test
  void everyOperationEqualsTheReference() {
    Tensor x = random(3, 24);
    Tensor gate = random(3, 24);
    Tensor weight = random(24);
    Tensor matrix = random(10, 24);
    Tensor bias = random(10);
    check((e, a) -> Ops.rmsNorm(e, RmsNormArgs.of(a[0], 1e-5f).withGate(a[1]).withWeight(a[2]).withGroups(2)), x, gate, weight);
    check((e, a) -> Ops.linear(e, a[0], a[1], a[2]), x, matrix, bias);
    check((e, a) -> Ops.softmax(e, a[0]), x);
    check((e, a) -> Ops.logSoftmax(e, a[0]), x);
    check((e, a) -> Ops.embedding(e, a[0], 9, 0, 9), matrix);
    check((e, a) -> Ops.causalConv1d(e, CausalConv1dArgs.of(a[0], a[1]).withSilu(true)), random(2, 9, 7), random(7, 4));
    Tensor long2d = random(100, 24); // enough rows for the large product
    check((e, a) -> Ops.linear(e, a[0].slice(0, 3, 90), a[1], null), long2d, matrix);
    Tensor quantised = Tensor.allocate(arena, DType.Q8_0, 10, 64);
    Ops.quantize(engine, random(10, 64), quantised); // in host memory on any device
    // Some instruction sets round activations that meet quantised weights to 16 bits.
    check(1e-4, (e, a) -> Ops.linear(e, a[0], a[1], null), random(5, 64), quantised);
    check((e, a) -> Ops.embedding(e, a[0], 3, 1), quantised);
  }

  private void check(BiFunction<Engine, Tensor[], Tensor> op, Tensor... inputs) {
    check(1e-5, op, inputs);
  }

  private void check(double tolerance, BiFunction<Engine, Tensor[], Tensor> op, Tensor... inputs) {
    Tensor expected = op.apply(cpu, inputs);
    Tensor[] copies = Arrays.stream(inputs).map(t -> t.toDevice(engine, arena)).toArray(Tensor[]::new);
    Tensor found = op.apply(engine, copies);
    assertEquals(Goldens.DEVICE, found.device());
    assertClose(expected, here(found), tolerance, "operation");
  }

  @Test
  void halvesGiveHalvesOnAGpu() {
    assumeTrue(GPU);
    Tensor x = random(6, 40);
    Tensor expected = Ops.rmsNorm(cpu, RmsNormArgs.of(x, 1e-5f));
    for (DType type : FLOATS) {
      Tensor there = Ops.copy(engine, x, Tensor.allocate(arena, engine, type, 6, 40));
      Tensor found = Ops.rmsNorm(engine, RmsNormArgs.of(there, 1e-5f));
      assertEquals(type, found.dtype());
      assertClose(expected.toFloatArray(), here(found).toFloatArray(), type == DType.F32 ? 1e-5 : 1e-2, type.name());
    }
  }

  @Test
  void copiesKeepElementsThroughViewsAndTypes() {
    Tensor x = random(5, 7, 3);
    for (DType type : FLOATS) {
      Tensor stored = x.convertTo(arena, type);
      Tensor there = stored.toDevice(engine, arena);
      assertEquals(Goldens.DEVICE, there.device());
      assertArrayEquals(stored.toFloatArray(), there.toHost(engine, arena).toFloatArray());
      Tensor view = there.transpose(0, 2).slice(1, 2, 6).select(0, 1); // [4, 5]
      Tensor expected = stored.transpose(0, 2).slice(1, 2, 6).select(0, 1);
      assertArrayEquals(expected.toFloatArray(), view.toHost(engine, arena).toFloatArray());
      Tensor wide = Tensor.allocate(arena, DType.F32, 5, 4);
      Ops.copy(engine, view, wide.transpose(0, 1));
      assertArrayEquals(expected.toFloatArray(), wide.transpose(0, 1).toFloatArray());
      // From a strided host view into a strided view there, converted on the way.
      Tensor target = Tensor.allocate(arena, engine, type, 3, 7, 5);
      Ops.copy(engine, x, target.transpose(0, 2));
      assertArrayEquals(stored.toFloatArray(), target.transpose(0, 2).toHost(engine, arena).toFloatArray());
    }
    Tensor onHeap = Tensor.of(MemorySegment.ofArray(new float[105]), DType.F32, 5, 7, 3);
    Ops.copy(engine, x.toDevice(engine, arena), onHeap);
    assertArrayEquals(x.toFloatArray(), onHeap.toFloatArray());
    for (DType type : DType.values()) { // any bytes travel
      long bytes = type.bytesFor(64);
      byte[] content = new byte[(int) bytes];
      random.nextBytes(content);
      Tensor host = Tensor.allocate(arena, type, 2, 32);
      host.segment().copyFrom(MemorySegment.ofArray(content));
      Tensor back = host.toDevice(engine, arena).toHost(engine, arena);
      assertEquals(-1, back.segment().mismatch(host.segment()), type.name());
    }
    assertEquals(0, Tensor.allocate(arena, engine, DType.F32, 3, 0).toHost(engine, arena).size());
  }

  @Test
  void newMemoryIsZero() {
    assertArrayEquals(new float[77], here(Tensor.allocate(arena, engine, DType.F32, 77)).toFloatArray());
  }

  @Test
  void addressesAreHandedOverWithoutACopy() {
    assumeTrue(GPU);
    Tensor owner = random(4, 8).toDevice(engine, arena);
    assertEquals(0, owner.pointer().byteSize());
    Tensor view;
    try (Arena lent = Arena.ofShared()) {
      view = Tensor.ofAddress(lent, Goldens.DEVICE, owner.pointer().address(), DType.F32, 4, 8);
      Ops.softmax(engine, view, view);
      assertArrayEquals(here(view).toFloatArray(), here(owner).toFloatArray());
      long second = owner.pointer().address() + 8 * Float.BYTES;
      Tensor columns =
          Tensor.ofAddressStrided(lent, Goldens.DEVICE, second, DType.F32, new long[] {8, 2}, new long[] {1, 8});
      assertArrayEquals(
          here(owner).slice(0, 1, 3).transpose(0, 1).toFloatArray(), columns.toHost(engine, arena).toFloatArray());
    }
    Tensor ended = view;
    assertThrows(IllegalStateException.class, () -> Ops.softmax(engine, ended));
    here(owner); // is still there
    long outside = 4096; // no GPU memory
    Tensor wild = Tensor.ofAddress(arena, Goldens.DEVICE, outside, DType.F32, 4);
    assertMessage(IllegalArgumentException.class, () -> Ops.copy(engine, wild, owner.select(0, 0).slice(0, 0, 4)), "from", "GPU memory");
  }

  @Test
  void elementsOfAGpuAreNotForJava(@TempDir Path folder) {
    assumeTrue(GPU);
    Tensor there = random(2, 3).toDevice(engine, arena);
    Tensor here = random(2, 3);
    List<Runnable> accesses =
        List.of(
            there::segment,
            () -> there.getFloat(1, 1),
            () -> there.select(0, 1).getFloat(2),
            () -> there.setFloat(1, 0, 0),
            there::toFloatArray,
            () -> there.copyTo(new float[6]),
            () -> there.copyTo(arena),
            () -> there.convertTo(arena, DType.BF16),
            () -> there.copyFrom(here),
            () -> here.copyFrom(there),
            () -> here.copyFrom(there.transpose(0, 1).transpose(0, 1)));
    for (int i = 0; i < accesses.size(); i++) {
      assertMessage(UnsupportedOperationException.class, accesses.get(i), "cuda:", "toHost");
    }
    assertThrows(
        UnsupportedOperationException.class,
        () -> SafetensorsWriter.write(folder.resolve("x"), java.util.Map.of("x", there), java.util.Map.of()));
    assertTrue(there.toString().contains(Goldens.DEVICE.toString()), there.toString());
  }

  @Test
  void placesAreNotMixed() {
    Tensor x = random(3, 8);
    Tensor elsewhere = Tensor.ofAddress(arena, Device.cuda(77), 1 << 20, DType.F32, 3, 8);
    String place = Goldens.DEVICE.toString();
    assertMessage(IllegalArgumentException.class, () -> Ops.softmax(engine, elsewhere), "x", "cuda:77", place);
    assertMessage(IllegalArgumentException.class, () -> Ops.copy(engine, elsewhere, x), "from", "cuda:77", place);
    assertMessage(IllegalArgumentException.class, () -> Ops.copy(engine, x, elsewhere), "to", "cuda:77", place);
    assertThrows(IllegalArgumentException.class, () -> Tensor.ofAddress(arena, Device.cpu(), 4096, DType.F32, 1));
    assumeTrue(GPU);
    Tensor there = x.toDevice(engine, arena);
    assertMessage(IllegalArgumentException.class, () -> Ops.softmax(engine, x, there), "x", "found one on cpu", "toDevice");
    assertMessage(IllegalArgumentException.class, () -> Ops.softmax(engine, there, x), "out", "found one on cpu");
    assertMessage(IllegalArgumentException.class, () -> Ops.softmax(cpu, there), "x", place, "toHost");
    assertMessage(
        IllegalArgumentException.class, () -> Ops.quantize(engine, there, Tensor.allocate(arena, DType.Q8_0, 1, 32)), "toHost");
    Tensor halves = x.convertTo(arena, DType.F16).toDevice(engine, arena);
    assertMessage(
        UnsupportedOperationException.class, () -> Ops.rmsNorm(engine, RmsNormArgs.of(there, 0).withGate(halves)), "gate", "F16");
  }

  @Test
  void memoryEndsWithItsArenaAndIsCounted() {
    Tensor closed;
    try (Arena own = Arena.ofShared()) {
      closed = random(1000).toDevice(engine, own);
      assertEquals(GPU, engine.deviceBytes() >= heldBefore + 4000);
      Engine second = Engine.create(EngineOptions.defaults().withDevice(Goldens.DEVICE));
      Tensor outlives = Tensor.allocate(own, second, DType.F32, 10);
      second.close();
      assertArrayEquals(new float[10], here(outlives).toFloatArray());
      assertThrows(IllegalStateException.class, () -> Tensor.allocate(own, second, DType.F32, 10));
    }
    assertEquals(heldBefore, engine.deviceBytes());
    Tensor rows = closed.reshape(10, 100);
    assertThrows(IllegalStateException.class, () -> Ops.softmax(engine, rows, rows));
    assertThrows(IllegalStateException.class, () -> closed.toHost(engine, arena));
    assertThrows(IllegalStateException.class, () -> Tensor.allocate(closedArena(), engine, DType.F32, 10));
    assertEquals(heldBefore, engine.deviceBytes());
  }

  @Test
  void outputsWithoutAnOwnerAreCollected() throws InterruptedException {
    assumeTrue(GPU);
    Tensor x = random(100, 100).toDevice(engine, arena);
    long before = engine.deviceBytes();
    for (int i = 0; i < 10; i++) {
      Ops.softmax(engine, x);
    }
    for (int i = 0; i < 200 && engine.deviceBytes() != before; i++) {
      System.gc();
      Thread.sleep(10);
    }
    assertEquals(before, engine.deviceBytes());
  }

  @Test
  void outOfMemorySaysSoAndLeavesAllUsable() {
    assumeTrue(GPU);
    Tensor x = random(3, 8).toDevice(engine, arena);
    var thrown = assertThrows(MambaException.class, () -> Tensor.allocate(arena, engine, DType.F32, 1L << 45));
    assertTrue(thrown.getMessage().contains("140737488.4 MB of GPU memory"), thrown.getMessage());
    assertTrue(thrown.getMessage().contains("are free"), thrown.getMessage());
    assertNotEquals(0, here(Ops.softmax(engine, x)).getFloat(0, 0));
  }

  @Test
  void theSameTensorComesBack() {
    Tensor x = random(3, 8).toDevice(engine, arena);
    assertSame(x, Ops.softmax(engine, x, x));
    assertSame(x, Ops.copy(engine, random(3, 8), x));
    assertMessage(IllegalArgumentException.class, () -> Ops.copy(engine, random(8, 3), x), "to", "[8, 3]", "[3, 8]");
  }

  private Arena closedArena() {
    Arena closed = Arena.ofShared();
    closed.close();
    return closed;
  }

  private Tensor there(SafetensorsFile in, String name) throws IOException {
    return in.tensor(name).toDevice(engine, arena);
  }

  private Tensor there(SafetensorsFile in, String name, DType type) throws IOException {
    Tensor tensor = in.tensor(name);
    return Ops.copy(engine, tensor, Tensor.allocate(arena, engine, type, tensor.shape()));
  }

  private Tensor here(Tensor tensor) {
    return tensor.toHost(engine, arena);
  }

  private Tensor random(long... shape) {
    float[] values = new float[Math.toIntExact(Arrays.stream(shape).reduce(1, (a, b) -> a * b))];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return Tensor.copyOf(arena, values, shape);
  }

  private static void assertMessage(Class<? extends Exception> type, Runnable misuse, String... parts) {
    String message = assertThrows(type, misuse::run).getMessage();
    for (String part : parts) {
      assertTrue(message.contains(part), message);
    }
  }
}
