package org.mamba4j.bench.peers;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/**
 * A moment, with the time that all processors together were busy until then.
 *
 * @param nanos {@link System#nanoTime}
 * @param busySeconds over all processes, and what a hypervisor withheld
 */
record SystemTime(long nanos, double busySeconds) {
  /** Unit of /proc/stat: USER_HZ is 100 wherever Linux has user space programs. */
  private static final double TICK_SECONDS = 0.01;

  static SystemTime now() throws IOException {
    try (var lines = Files.lines(Path.of("/proc/stat"))) {
      // cpu  user nice system idle iowait irq softirq steal ...
      String[] words = lines.findFirst().orElseThrow().trim().split("\\s+");
      long[] ticks = Arrays.stream(words, 1, 9).mapToLong(Long::parseLong).toArray();
      long busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6] + ticks[7];
      return new SystemTime(System.nanoTime(), busy * TICK_SECONDS);
    }
  }

  /** The share of the processors that went to others than the process that used {@code ownSeconds} of them. */
  double foreignShareSince(SystemTime start, double ownSeconds) {
    double available = (nanos - start.nanos) * 1e-9 * Runtime.getRuntime().availableProcessors();
    return Math.max(0, busySeconds - start.busySeconds - ownSeconds) / available;
  }
}
