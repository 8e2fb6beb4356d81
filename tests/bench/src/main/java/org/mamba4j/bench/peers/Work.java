package org.mamba4j.bench.peers;

/**
 * What the contenders do side by side.
 *
 * @param name in the report
 * @param request to a {@link Worker}
 * @param unit of the figures: "tok/s", where more is better, or "ms"
 * @param tokens that one call processes, 0 if the figure is a time
 */
record Work(String name, String request, String unit, int tokens) {
  static Work rate(String name, String request, int tokens) {
    return new Work(name + " " + tokens, request + " " + tokens, "tok/s", tokens);
  }

  static Work time(String name, String request) {
    return new Work(name, request, "ms", 0);
  }

  double figure(Sample sample) {
    return tokens > 0 ? tokens / sample.seconds() : 1e3 * sample.seconds();
  }
}
