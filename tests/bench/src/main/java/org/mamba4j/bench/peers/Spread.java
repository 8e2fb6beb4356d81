package org.mamba4j.bench.peers;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

record Spread(double median, double min, double max, int samples) {
  static Spread of(double[] values) {
    double[] sorted = values.clone();
    Arrays.sort(sorted);
    int middle = sorted.length / 2;
    double median = sorted.length % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
    return new Spread(median, sorted[0], sorted[sorted.length - 1], sorted.length);
  }

  Map<String, Object> json() {
    Map<String, Object> object = new LinkedHashMap<>();
    object.put("median", median);
    object.put("min", min);
    object.put("max", max);
    object.put("samples", samples);
    return object;
  }
}
