package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.DType;
import org.mamba4j.Tensor;

class SamplerTest {
  private static final SamplingOptions GREEDY = SamplingOptions.greedy();

  @Test
  void greedyTakesTheLowestIdAmongTheLargest() {
    Sampler sampler = new Sampler(GREEDY, 5);
    assertEquals(1, sampler.next(Fixtures.logits(0, 3, 3, -1, 3)));
    assertEquals(Math.log(1 / (3 + Math.exp(-3) + Math.exp(-4))), sampler.logProb(), 1e-6);
    assertEquals(0, sampler.next(Fixtures.logits(-5, -5, -5, -5, -5)));
  }

  @ParameterizedTest
  @ValueSource(floats = {0, 1})
  void paddingIsNeverChosen(float temperature) {
    Sampler sampler = new Sampler(GREEDY.withTemperature(temperature), 3);
    Tensor logits = Fixtures.logits(0, 1, 2, 100, Float.NaN);
    for (int i = 0; i < 200; i++) {
      assertTrue(sampler.next(logits) < 3);
    }
    assertEquals(7, new Sampler(GREEDY, 100).next(Fixtures.logits(0, 0, 0, 0, 0, 0, 0, 1)), "smaller than the tokenizer's");
  }

  /** Sorts everything, filters in words of the documentation, returns id -> probability. */
  private static double[] naive(float[] logits, SamplingOptions o, int vocab, int[] history) {
    double[] scores = new double[vocab];
    for (int i = 0; i < vocab; i++) {
      scores[i] = logits[i];
    }
    Set<Integer> recent = new HashSet<>();
    for (int i = Math.max(0, history.length - o.repetitionWindow()); i < history.length; i++) {
      recent.add(history[i]);
    }
    for (int id : recent) {
      scores[id] = (float) (scores[id] > 0 ? scores[id] / o.repetitionPenalty() : scores[id] * o.repetitionPenalty());
    }
    List<Integer> order = new ArrayList<>(IntStream.range(0, vocab).boxed().toList());
    order.sort(Comparator.<Integer>comparingDouble(i -> -scores[i]).thenComparingInt(i -> i));
    double max = scores[order.getFirst()];
    if (o.topK() > 0 && o.topK() < vocab) {
      order = order.subList(0, o.topK());
    }
    double[] weight = new double[vocab];
    double total = 0;
    for (int id : order) {
      weight[id] = Math.exp((scores[id] - max) / o.temperature());
      total += weight[id];
    }
    double[] kept = new double[vocab];
    double before = 0;
    double mass = 0;
    for (int id : order) {
      if ((before < o.topP() * total || o.topP() == 1) && weight[id] >= o.minP()) {
        kept[id] = weight[id];
        mass += weight[id];
      }
      before += weight[id];
    }
    for (int i = 0; i < vocab; i++) {
      kept[i] /= mass;
    }
    return kept;
  }

  private static float[] randomLogits(Random random, int size, double spread) {
    float[] logits = new float[size];
    for (int i = 0; i < size; i++) {
      logits[i] = (float) (random.nextGaussian() * spread);
    }
    return logits;
  }

  @Test
  void everyCombinationOfFiltersHasTheDistributionOfANaiveSampler() {
    Random random = new Random(11);
    int draws = 3000;
    for (int round = 0; round < 50; round++) {
      int vocab = 2 + random.nextInt(12);
      float[] logits = randomLogits(random, vocab + 3, 1.5);
      if (random.nextBoolean()) {
        logits[1] = logits[0]; // a tie
      }
      SamplingOptions options = new SamplingOptions(
          0.3f + random.nextFloat() * 2,
          random.nextInt(3) == 0 ? 1 + random.nextInt(vocab + 2) : 0,
          random.nextBoolean() ? 0.05f + 0.9f * random.nextFloat() : 1,
          random.nextBoolean() ? random.nextFloat() * 0.5f : 0,
          random.nextBoolean() ? 0.5f + random.nextFloat() * 2 : 1,
          random.nextInt(4),
          round);
      int[] history = IntStream.range(0, 5).map(_ -> random.nextInt(vocab)).toArray();
      double[] expected = naive(logits, options, vocab, history);

      Tensor tensor = Fixtures.logits(logits);
      int[] counts = new int[vocab];
      for (int i = 0; i < draws; i++) {
        Sampler sampler = new Sampler(options.withSeed(options.seed() * draws + i), vocab);
        sampler.observe(history);
        counts[sampler.next(tensor)]++;
      }
      for (int id = 0; id < vocab; id++) {
        double tolerance = 5 * Math.sqrt(expected[id] * (1 - expected[id]) / draws) + 1e-9;
        assertEquals(expected[id], counts[id] / (double) draws, tolerance, options + " id " + id);
      }
    }
  }

  @Test
  void topPOverALargeFlatVocabularyKeepsTheRightTokens() {
    Random random = new Random(5);
    for (float topP : new float[] {0.01f, 0.5f, 0.9f, 0.999f}) {
      float[] logits = randomLogits(random, 5000, 0.5);
      SamplingOptions options = GREEDY.withTemperature(1).withTopP(topP);
      double[] expected = naive(logits, options, 5000, new int[0]);
      Set<Integer> seen = new HashSet<>();
      Sampler sampler = new Sampler(options.withSeed(1), 5000);
      Tensor tensor = Fixtures.logits(logits);
      for (int i = 0; i < 300; i++) {
        int id = sampler.next(tensor);
        assertTrue(expected[id] > 0, "id " + id + " is outside top-p " + topP);
        seen.add(id);
      }
      assertTrue(seen.size() > 10, "many different tokens");
    }
  }

  @Test
  void equalSeedsGiveEqualTokensAndResetStartsOver() {
    Tensor logits = Fixtures.logits(randomLogits(new Random(1), 100, 1));
    SamplingOptions options = GREEDY.withTemperature(1).withSeed(42).withRepetitionPenalty(1.3f).withTopK(50);
    Sampler first = new Sampler(options, 100);
    int[] tokens = IntStream.range(0, 50).map(_ -> first.next(logits)).toArray();
    Sampler second = new Sampler(options, 100);
    assertArrayEquals(tokens, IntStream.range(0, 50).map(_ -> second.next(logits)).toArray());
    second.reset();
    assertArrayEquals(tokens, IntStream.range(0, 50).map(_ -> second.next(logits)).toArray());
    Sampler other = new Sampler(options.withSeed(43), 100);
    assertFalse(Arrays.equals(tokens, IntStream.range(0, 50).map(_ -> other.next(logits)).toArray()));
  }

  @Test
  void theRandomSequenceIsSplitMix64() {
    // SplitMix64 from seed 1234567 begins with 6457827717110365317, 3203168211198807973, 9817491932198370423:
    // upper 53 bits over 2^53 are 0.3500…, 0.1736…, 0.5322…
    Sampler sampler = new Sampler(GREEDY.withTemperature(1).withSeed(1234567), 10_000);
    Tensor flat = Fixtures.logits(new float[10_000]);
    assertEquals(3500, sampler.next(flat));
    assertEquals(1736, sampler.next(flat));
    assertEquals(5322, sampler.next(flat));
  }

  @Test
  void thePenaltyForgetsWhatLeftTheWindow() {
    Sampler sampler = new Sampler(GREEDY.withRepetitionPenalty(10).withRepetitionWindow(2), 3);
    Tensor logits = Fixtures.logits(3, 2, 1);
    assertArrayEquals(
        new int[] {0, 1, 2, 0, 1, 2, 0}, IntStream.range(0, 7).map(_ -> sampler.next(logits)).toArray());
    Sampler negative = new Sampler(GREEDY.withRepetitionPenalty(10), 2);
    negative.observe(0);
    assertEquals(1, negative.next(Fixtures.logits(-1, -2)));
  }

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

  @Test
  void theLogProbabilityIsTheModelsOwn() {
    Sampler sampler = new Sampler(
        SamplingOptions.random(0.5f, 1).withTopK(1).withRepetitionPenalty(1.1f), 2);
    sampler.observe(1);
    assertEquals(1, sampler.next(Fixtures.logits(0, 2, 9)));
    assertEquals(-Math.log(1 + Math.exp(-2)), sampler.logProb(), 1e-6);
  }

  @ParameterizedTest
  @ValueSource(floats = {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY})
  void logitsThatAreNoNumbersAreNamed(float bad) {
    for (float temperature : new float[] {0, 1}) {
      Sampler sampler = new Sampler(GREEDY.withTemperature(temperature), 3);
      var e = assertThrows(IllegalArgumentException.class, () -> sampler.next(Fixtures.logits(1, bad, 2)));
      assertTrue(e.getMessage().contains("logits[1]") && e.getMessage().contains(String.valueOf(bad)), e.getMessage());
    }
  }

  @Test
  void extremeValuesStayHarmless() {
    float[] extreme = {Float.MAX_VALUE, -Float.MAX_VALUE, 0};
    for (float temperature : new float[] {Float.MIN_VALUE, 1, Float.MAX_VALUE}) {
      Sampler sampler = new Sampler(GREEDY.withTemperature(temperature).withRepetitionPenalty(0.1f), 3);
      sampler.observe(0, 1, -1, 99);
      int id = sampler.next(Fixtures.logits(extreme));
      assertTrue(id == 0 || temperature == Float.MAX_VALUE, "temperature " + temperature + " chose " + id);
    }
  }

  @Test
  void wrongTensorsAndOptionsAreRefused() {
    Sampler sampler = new Sampler(GREEDY, 3);
    assertThrows(IllegalArgumentException.class, () -> sampler.next(Fixtures.logits(1, 2).reshape(1, 2)));
    assertThrows(IllegalArgumentException.class,
        () -> sampler.next(Tensor.allocate(Arena.ofAuto(), DType.F16, 3)));
    assertThrows(IllegalArgumentException.class, () -> new Sampler(GREEDY, 0));
    assertThrows(IllegalArgumentException.class, () -> GREEDY.withTemperature(-1));
    assertThrows(IllegalArgumentException.class, () -> GREEDY.withTemperature(Float.NaN));
    assertThrows(IllegalArgumentException.class, () -> GREEDY.withTopK(-1));
    assertThrows(IllegalArgumentException.class, () -> GREEDY.withTopP(0));
    assertThrows(IllegalArgumentException.class, () -> GREEDY.withTopP(1.1f));
    assertThrows(IllegalArgumentException.class, () -> GREEDY.withMinP(-0.1f));
    assertThrows(IllegalArgumentException.class, () -> GREEDY.withRepetitionPenalty(0));
    assertThrows(IllegalArgumentException.class, () -> GREEDY.withRepetitionWindow(-1));
  }

  @Test
  void aTokenAllocatesNothing() {
    var threads = (com.sun.management.ThreadMXBean) java.lang.management.ManagementFactory.getThreadMXBean();
    Tensor logits = Fixtures.logits(randomLogits(new Random(2), 1000, 1));
    for (SamplingOptions options : List.of(
        GREEDY, GREEDY.withTemperature(1), GREEDY.withTemperature(1).withTopP(0.9f).withRepetitionPenalty(1.2f))) {
      Sampler sampler = new Sampler(options, 1000);
      for (int i = 0; i < 2000; i++) {
        sampler.next(logits);
      }
      long before = threads.getCurrentThreadAllocatedBytes();
      for (int i = 0; i < 1000; i++) {
        sampler.next(logits);
      }
      long perToken = (threads.getCurrentThreadAllocatedBytes() - before) / 1000;
      assertTrue(perToken < 64, options + " allocates " + perToken + " bytes a token");
    }
  }
}
