package org.mamba4j.cli;

import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.io.PrintWriter;
import java.util.Map;

/** Machine-readable output: one JSON object on one line. */
final class Json {
  private static final JSON WRITER = JSON.std.with(JSON.Feature.WRITE_NULL_PROPERTIES);

  private Json() {}

  static void print(PrintWriter out, Map<String, Object> object) throws IOException {
    out.println(WRITER.asString(object));
  }

  /** JSON has no NaN and no infinity: they become null. */
  static Double number(double value) {
    return Double.isFinite(value) ? value : null;
  }

  static Float number(float value) {
    return Float.isFinite(value) ? value : null;
  }
}
