package org.mamba4j;

import java.util.Objects;

/**
 * How an {@link Engine} is made. Immutable.
 *
 * @param device where it computes
 * @param threads threads that share a computation; 0 for as many as the container's CPU quota and affinity allow
 * @param simdTarget instruction set to use, one of {@link Engine#simdTargets()}; null for the best
 */
public record EngineOptions(Device device, int threads, String simdTarget) {
  private static final EngineOptions DEFAULTS = new EngineOptions(Device.cpu(), 0, null);

  public EngineOptions {
    Objects.requireNonNull(device, "device");
    if (threads < 0) {
      throw new IllegalArgumentException("threads: 0 or more expected, found " + threads);
    }
  }

  /** The CPU, all threads that may be used, the best instruction set. */
  public static EngineOptions defaults() {
    return DEFAULTS;
  }

  /** These options with another device. */
  public EngineOptions withDevice(Device device) {
    return new EngineOptions(device, threads, simdTarget);
  }

  /** These options with another number of threads, 0 for the default. */
  public EngineOptions withThreads(int threads) {
    return new EngineOptions(device, threads, simdTarget);
  }

  /** These options with another instruction set, null for the best. */
  public EngineOptions withSimdTarget(String simdTarget) {
    return new EngineOptions(device, threads, simdTarget);
  }
}
