package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Random;
import org.junit.jupiter.api.Test;

class ExponentialsTest {
  @Test
  void exponentialsAreExactToFloatPrecision() {
    Random random = new Random(6);
    for (int size : new int[] {1, 3, 4, 17, 10_007}) {
      float[] scores = new float[size];
      for (int i = 0; i < size; i++) {
        scores[i] = i == 0 ? 5 : 5 - 85 * random.nextFloat() * random.nextFloat();
      }
      float[] out = new float[size];
      double sum = new Exponentials().compute(scores, 5, 1, size, out);
      double expected = 0;
      for (int i = 0; i < size; i++) {
        double exact = Math.exp((double) scores[i] - 5);
        assertEquals(exact, out[i], 1e-6 * exact, "exp(" + (scores[i] - 5) + ")");
        expected += exact;
      }
      assertEquals(expected, sum, 1e-6 * expected);
    }
    float[] far = {0, -1e30f, Float.NEGATIVE_INFINITY};
    assertEquals(1, new Exponentials().compute(far, 0, Float.MAX_VALUE, 3, far), 1e-30);
  }
}
