package org.mamba4j.cli;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.Ops;
import org.mamba4j.Tensor;

/** What the machine can do at most, measured in the same process as the figures that are compared with it. */
final class Ceilings {
  private static final int REPEAT = 5;

  /** More than a processor caches; 480 MiB of third level exist. */
  private static final long BYTES = 1L << 30;

  /** Bytes of a cache line. */
  private static final long STEP = 64;

  // A prompt of 512 tokens through the first projection of the 130m models.
  private static final long M = 512;
  private static final long N = 3072;
  private static final long K = 768;

  private Ceilings() {}

  /** Gigabytes a second that the engine's threads read from memory together; on a GPU, of a copy, read and written. */
  static double bandwidth(Engine engine) throws Exception {
    return engine.device().isCuda() ? copyBandwidth(engine) : readBandwidth(engine.threads());
  }

  private static double copyBandwidth(Engine engine) throws Exception {
    try (Arena arena = Arena.ofShared()) {
      Tensor from = Tensor.allocate(arena, engine, DType.U8, BYTES);
      Tensor to = Tensor.allocate(arena, engine, DType.U8, BYTES);
      return Spread.seconds(REPEAT, () -> Ops.copy(engine, from, to)).rate(2e-9 * BYTES).median();
    }
  }

  private static double readBandwidth(int threads) throws Exception {
    try (Arena arena = Arena.ofShared();
        ExecutorService pool = Executors.newFixedThreadPool(threads)) {
      MemorySegment memory = arena.allocate(BYTES, STEP);
      memory.fill((byte) 1);
      // Each part against another one like it: a comparison uses the widest loads that the processor has.
      List<Callable<Long>> parts = new ArrayList<>();
      for (int i = 0; i < threads; i++) {
        MemorySegment one = part(memory, 2 * i, 2 * threads);
        MemorySegment other = part(memory, 2 * i + 1, 2 * threads);
        parts.add(() -> one.mismatch(other));
      }
      return Spread.seconds(
              REPEAT,
              () -> {
                for (Future<Long> mismatch : pool.invokeAll(parts)) {
                  if (mismatch.get() != -1) { // also keeps the reads from being optimised away
                    throw new IllegalStateException("memory does not read back as it was written");
                  }
                }
              })
          .rate(BYTES * 1e-9)
          .median();
    }
  }

  /** Number {@code i} of {@code count} parts of equal size. */
  private static MemorySegment part(MemorySegment memory, long i, long count) {
    long size = memory.byteSize() / count / STEP * STEP;
    return memory.asSlice(i * size, size);
  }

  /** GFLOP/s of the engine's own float32 matrix product. */
  static double sgemm(Engine engine) throws Exception {
    try (Arena arena = Arena.ofShared()) {
      Tensor x = Tensor.allocate(arena, DType.F32, M, K);
      Tensor weight = Tensor.allocate(arena, DType.F32, N, K);
      for (Tensor tensor : List.of(x, weight)) {
        for (long i = 0; i < tensor.size(); i++) {
          tensor.segment().setAtIndex(JAVA_FLOAT, i, i % 13 - 6);
        }
      }
      Tensor left = x.toDevice(engine, arena);
      Tensor right = weight.toDevice(engine, arena);
      Tensor out = Tensor.allocate(arena, engine, DType.F32, M, N);
      return Spread.seconds(REPEAT, () -> Ops.linear(engine, left, right, null, out)).rate(2e-9 * M * N * K).median();
    }
  }
}
