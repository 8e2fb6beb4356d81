package org.mamba4j.cli;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

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

  /** Bytes that {@link #sum} takes at a time. */
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
      List<Callable<Long>> parts = new ArrayList<>();
      for (int i = 0; i < threads; i++) {
        long from = BYTES / STEP * i / threads * STEP;
        long to = BYTES / STEP * (i + 1) / threads * STEP;
        MemorySegment part = memory.asSlice(from, to - from);
        parts.add(() -> sum(part));
      }
      long expected = BYTES / 8 * 0x0101010101010101L;
      return Spread.seconds(
              REPEAT,
              () -> {
                long total = 0;
                for (Future<Long> part : pool.invokeAll(parts)) {
                  total += part.get();
                }
                if (total != expected) { // also keeps the reads from being optimised away
                  throw new IllegalStateException("memory does not read back as it was written");
                }
              })
          .rate(BYTES * 1e-9)
          .median();
    }
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

  /** Eight independent sums, so that memory and not the adding is what takes time. */
  private static long sum(MemorySegment memory) {
    long a = 0;
    long b = 0;
    long c = 0;
    long d = 0;
    long e = 0;
    long f = 0;
    long g = 0;
    long h = 0;
    for (long i = 0; i < memory.byteSize(); i += STEP) {
      a += memory.get(JAVA_LONG, i);
      b += memory.get(JAVA_LONG, i + 8);
      c += memory.get(JAVA_LONG, i + 16);
      d += memory.get(JAVA_LONG, i + 24);
      e += memory.get(JAVA_LONG, i + 32);
      f += memory.get(JAVA_LONG, i + 40);
      g += memory.get(JAVA_LONG, i + 48);
      h += memory.get(JAVA_LONG, i + 56);
    }
    return a + b + c + d + e + f + g + h;
  }
}
