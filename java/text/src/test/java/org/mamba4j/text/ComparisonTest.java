package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Path;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.mamba4j.ModelOptions;
import org.mamba4j.WeightType;

class ComparisonTest {
  private static final int[] IDS = new Random(7).ints(200, 0, 4096).toArray();

  private static TextModel demo(WeightType type) throws IOException {
    return TextModel.load(Fixtures.DEMO_MODEL, ModelOptions.defaults().withWeightType(type));
  }

  @Test
  void divergesFromOthersOnly() throws IOException {
    try (TextModel exact = demo(WeightType.F32);
        TextModel coarse = demo(WeightType.INT8)) {
      Comparison same = exact.compare(IDS, exact);
      assertArrayEquals(new double[IDS.length - 1], same.divergences());
      assertEquals(same.reference(), same.score());
      assertEquals(exact.score(IDS).perplexity(), same.score().perplexity(), 1e-4 * same.score().perplexity());

      Comparison near = coarse.compare(IDS, exact);
      assertArrayEquals(same.score().logProbs(), near.reference().logProbs());
      assertEquals(coarse.score(IDS).totalLogProb(), near.score().totalLogProb(), 1e-5 * -near.score().totalLogProb());
      for (double divergence : near.divergences()) {
        assertTrue(divergence > 0 && divergence < 0.01, "divergence " + divergence);
      }
      assertThrows(IllegalArgumentException.class, () -> coarse.compare(new int[] {5}, exact));
      var e = assertThrows(IllegalArgumentException.class, () -> coarse.compare(new int[] {5, 4096}, exact));
      assertTrue(e.getMessage().contains("token id 4096, expected 0 to 4095"), e.getMessage());
      Path other = Path.of("../../tests/goldens/mamba1-tied");
      try (TextModel small = TextModel.load(other)) {
        e = assertThrows(IllegalArgumentException.class, () -> small.compare(IDS, exact));
        assertTrue(e.getMessage().contains("272 and 4096"), e.getMessage());
      }
    }
  }

  /** p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): KL(p || q) = 1/2 ln 2 - 1/4 ln 2. */
  @Test
  void divergenceByHand() {
    float ln2 = (float) Math.log(2);
    LogSoftmax p = LogSoftmax.of(new float[] {3 + ln2, 3, 3});
    LogSoftmax q = LogSoftmax.of(new float[] {-50, -50, -50 + ln2});
    assertEquals(Math.log(0.5), p.at(0), 1e-7);
    assertEquals(0.25 * Math.log(2), p.divergenceFrom(q), 1e-6);
    LogSoftmax far = LogSoftmax.of(new float[] {0, 2000, -2000}); // exp of either would overflow or vanish
    assertEquals(-4000, far.at(2));
    assertEquals(0, far.divergenceFrom(far));
    assertEquals((2000 + 0 + 4000) / 3.0 - Math.log(3), LogSoftmax.of(new float[3]).divergenceFrom(far), 1e-9);
  }

  @Test
  void quantiles() {
    double[] values = new double[200];
    for (int i = 0; i < values.length; i++) {
      values[i] = (i * 77 + 5) % 200; // a permutation of 0 to 199
    }
    Score score = new Score(new int[201], new float[200]);
    Comparison comparison = new Comparison(score, score, values);
    assertEquals(197, comparison.divergenceQuantile(0.99));
    assertEquals(199, comparison.divergenceQuantile(1));
    assertEquals(0, comparison.divergenceQuantile(0.001));
    assertEquals(99.5, comparison.meanDivergence());
    assertThrows(IllegalArgumentException.class, () -> comparison.divergenceQuantile(0));
  }
}
