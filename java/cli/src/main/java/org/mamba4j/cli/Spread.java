package org.mamba4j.cli;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.DoubleUnaryOperator;

/** Repeated measurements of one quantity: on a shared machine a single figure says little. */
record Spread(double median, double min, double max) {
  /** An action that is timed. */
  interface Timed {
    void run() throws Exception;
  }

  /** Seconds of an action that was run once before, unmeasured: the first time pays for page faults and compilation. */
  static Spread seconds(int repeat, Timed action) throws Exception {
    action.run();
    double[] samples = new double[repeat];
    for (int i = 0; i < repeat; i++) {
      long start = System.nanoTime();
      action.run();
      samples[i] = (System.nanoTime() - start) * 1e-9;
    }
    return of(samples);
  }

  static Spread of(double... samples) {
    double[] sorted = samples.clone();
    Arrays.sort(sorted);
    int middle = sorted.length / 2;
    double median = sorted.length % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
    return new Spread(median, sorted[0], sorted[sorted.length - 1]);
  }

  /** The same measurements in milliseconds, if these are seconds. */
  Spread milliseconds() {
    return map(seconds -> 1e3 * seconds);
  }

  /** Work done per second, if these are the seconds that {@code work} took. */
  Spread rate(double work) {
    return map(seconds -> work / seconds);
  }

  Map<String, Object> json() {
    Map<String, Object> object = new LinkedHashMap<>();
    object.put("median", median);
    object.put("min", min);
    object.put("max", max);
    return object;
  }

  /** By a monotonic function; a falling one exchanges min and max. */
  private Spread map(DoubleUnaryOperator f) {
    double a = f.applyAsDouble(min);
    double b = f.applyAsDouble(max);
    return new Spread(f.applyAsDouble(median), Math.min(a, b), Math.max(a, b));
  }
}
