package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.mamba4j.checkpoint.Checkpoint;

class SamplerTest {
  private static final SamplingOptions GREEDY = SamplingOptions.greedy();
  private static Engine engine;

  @BeforeAll
  static void start() {
    engine = Engine.create(EngineOptions.defaults().withThreads(1));
  }

  @AfterAll
  static void stop() {
    engine.close();
  }

  private static int next(Sampler sampler, Tensor logits) {
    return Ops.sample(engine, logits, sampler);
  }

  private static Tensor logits(float... values) {
    return Tensor.copyOf(Arena.ofAuto(), values, values.length);
  }

  @Test
  void greedyTakesTheLowestIdAmongTheLargest() {
    Sampler sampler = new Sampler(GREEDY, 5);
    assertEquals(1, next(sampler, logits(0, 3, 3, -1, 3)));
    assertEquals(Math.log(1 / (3 + Math.exp(-3) + Math.exp(-4))), sampler.logProb(), 1e-6);
    assertEquals(0, next(sampler, logits(-5, -5, -5, -5, -5)));
  }

  @ParameterizedTest
  @ValueSource(floats = {0, 1})
  void paddingIsNeverChosen(float temperature) {
    Sampler sampler = new Sampler(GREEDY.withTemperature(temperature), 3);
    Tensor logits = logits(0, 1, 2, 100, Float.NaN);
    for (int i = 0; i < 200; i++) {
      assertTrue(next(sampler, logits) < 3);
    }
    assertEquals(7, next(new Sampler(GREEDY, 100), logits(0, 0, 0, 0, 0, 0, 0, 1)), "smaller than the tokenizer's");
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
    int draws = 1000;
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

      Tensor tensor = logits(logits);
      int[] counts = new int[vocab];
      for (int i = 0; i < draws; i++) {
        Sampler sampler = new Sampler(options.withSeed(options.seed() * draws + i), vocab);
        sampler.observe(history);
        counts[next(sampler, tensor)]++;
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
      Tensor tensor = logits(logits);
      for (int i = 0; i < 300; i++) {
        int id = next(sampler, tensor);
        assertTrue(expected[id] > 0, "id " + id + " is outside top-p " + topP);
        seen.add(id);
      }
      assertTrue(seen.size() > 10, "many different tokens");
    }
  }

  @Test
  void equalSeedsGiveEqualTokensAndResetStartsOver() {
    Tensor logits = logits(randomLogits(new Random(1), 100, 1));
    SamplingOptions options = GREEDY.withTemperature(1).withSeed(42).withRepetitionPenalty(1.3f).withTopK(50);
    Sampler first = new Sampler(options, 100);
    int[] tokens = IntStream.range(0, 50).map(_ -> next(first, logits)).toArray();
    Sampler second = new Sampler(options, 100);
    assertArrayEquals(tokens, IntStream.range(0, 50).map(_ -> next(second, logits)).toArray());
    second.reset();
    assertArrayEquals(tokens, IntStream.range(0, 50).map(_ -> next(second, logits)).toArray());
    Sampler other = new Sampler(options.withSeed(43), 100);
    assertFalse(Arrays.equals(tokens, IntStream.range(0, 50).map(_ -> next(other, logits)).toArray()));
  }

  @Test
  void theRandomSequenceIsPhilox() {
    // The first 64 bits of Philox 4x32-10 for key 0 and counter 0 are e169c58d6627e8d5 (Random123's known answers): over
    // 2^64 that is 0.8805…
    Tensor flat = logits(new float[10_000]);
    assertEquals(8805, next(new Sampler(GREEDY.withTemperature(1), 10_000), flat));
    Sampler sampler = new Sampler(GREEDY.withTemperature(1).withSeed(1234567), 10_000);
    assertEquals(2379, next(sampler, flat));
    assertEquals(1877, next(sampler, flat));
    assertEquals(4313, next(sampler, flat));
  }

  @Test
  void thePenaltyForgetsWhatLeftTheWindow() {
    Sampler sampler = new Sampler(GREEDY.withRepetitionPenalty(10).withRepetitionWindow(2), 3);
    Tensor logits = logits(3, 2, 1);
    assertArrayEquals(
        new int[] {0, 1, 2, 0, 1, 2, 0}, IntStream.range(0, 7).map(_ -> next(sampler, logits)).toArray());
    Sampler negative = new Sampler(GREEDY.withRepetitionPenalty(10), 2);
    negative.observe(0);
    assertEquals(1, next(negative, logits(-1, -2)));
  }

  /** Sessions, batches of several sizes and logits sampled afterwards give one sequence of tokens. */
  @ParameterizedTest
  @ValueSource(strings = {"mamba1-tied", "falcon-mamba", "mamba2-g2"})
  void tokensDoNotDependOnWhereTheyAreChosen(String checkpoint) throws IOException {
    List<SamplingOptions> options = List.of(
        GREEDY,
        SamplingOptions.random(1, 5),
        SamplingOptions.random(0.8f, -9).withTopK(30).withTopP(0.9f).withRepetitionPenalty(1.3f),
        SamplingOptions.random(2, 11).withMinP(0.01f).withRepetitionPenalty(0.8f).withRepetitionWindow(3));
    try (Model model = Model.load(TestData.golden(checkpoint));
        Batch batch = model.newBatch(8)) {
      int vocabulary = Math.toIntExact(model.config().vocabSize());
      List<Session> sessions = new ArrayList<>();
      List<Sampler> samplers = new ArrayList<>();
      int[][] expected = new int[options.size()][20];
      int[][] inBatch = new int[options.size()][20];
      for (int i = 0; i < options.size(); i++) {
        int[] prompt = TestData.tokens(5 + 7 * i, 256, i);
        try (Session session = model.newSession()) {
          Sampler sampler = new Sampler(options.get(i), vocabulary - 3);
          sampler.observe(prompt);
          session.advance(prompt);
          for (int step = 0; step < 20; step++) {
            expected[i][step] = next(sampler, session.logits());
            session.advance(expected[i][step]);
          }
        }
        try (Session session = model.newSession()) {
          Sampler sampler = new Sampler(options.get(i), vocabulary - 3);
          sampler.observe(prompt);
          int token = session.next(sampler, prompt);
          for (int step = 0; step < 20; step++) {
            assertEquals(expected[i][step], token);
            assertTrue(sampler.logProb() <= 0);
            assertThrows(IllegalStateException.class, session::logits);
            token = session.next(sampler, token);
          }
        }
        sessions.add(model.newSession());
        samplers.add(new Sampler(options.get(i), vocabulary - 3));
        samplers.get(i).observe(prompt);
        batch.add(sessions.get(i), samplers.get(i), prompt);
      }
      try (Session silent = model.newSession()) {
        for (int step = 0; step < 20; step++) {
          batch.add(silent, step);
          batch.next();
          assertThrows(IllegalStateException.class, () -> batch.token(options.size()));
          assertThrows(IllegalStateException.class, () -> batch.logits(0));
          for (int i = 0; i < options.size(); i++) {
            inBatch[i][step] = batch.token(i);
          }
          batch.clear();
          for (int i = 0; i < options.size(); i++) {
            batch.add(sessions.get(i), samplers.get(i), inBatch[i][step]);
          }
        }
        assertEquals(20, silent.position());
      }
      for (int i = 0; i < options.size(); i++) {
        assertArrayEquals(expected[i], inBatch[i], options.get(i).toString());
        sessions.get(i).close();
      }
    }
  }

  @Test
  void aSamplerBelongsToOneSequence() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba2-g1"));
        Session a = model.newSession();
        Session b = model.newSession();
        Batch batch = model.newBatch(2)) {
      Sampler sampler = new Sampler(GREEDY, 256);
      batch.add(a, sampler, 1);
      assertThrows(IllegalArgumentException.class, () -> batch.add(b, sampler, 1));
      assertThrows(NullPointerException.class, () -> batch.add(b, (Sampler) null, 1));
      assertThrows(NullPointerException.class, () -> b.next(null, 1));
      assertThrows(IllegalArgumentException.class, () -> b.next(sampler));
      assertEquals(0, b.position());
      assertThrows(IllegalStateException.class, () -> batch.token(0));
      batch.advance();
      assertThrows(IllegalStateException.class, () -> batch.token(0));
      assertEquals(256 + 16, batch.logits(0).size());
    }
  }

  @Test
  void theLogProbabilityIsTheModelsOwn() {
    Sampler sampler = new Sampler(
        SamplingOptions.random(0.5f, 1).withTopK(1).withRepetitionPenalty(1.1f), 2);
    sampler.observe(1);
    assertEquals(1, next(sampler, logits(0, 2, 9)));
    assertEquals(-Math.log(1 + Math.exp(-2)), sampler.logProb(), 1e-6);
  }

  @ParameterizedTest
  @ValueSource(floats = {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY})
  void logitsThatAreNoNumbersAreNamed(float bad) {
    for (float temperature : new float[] {0, 1}) {
      Sampler sampler = new Sampler(GREEDY.withTemperature(temperature), 3);
      var e = assertThrows(IllegalArgumentException.class, () -> next(sampler, logits(1, bad, 2)));
      String name = Float.isNaN(bad) ? "nan" : bad > 0 ? " inf" : "-inf";
      assertTrue(e.getMessage().contains("logits[0, 1]") && e.getMessage().contains(name), e.getMessage());
    }
  }

  /** A model with a damaged weight: its name for it, however the call is made; samplers and sessions stay usable. */
  @Test
  void damagedLogitsEndACall(@TempDir Path folder) throws IOException {
    try (Checkpoint checkpoint = Checkpoint.open(TestData.golden("mamba2-g1"));
        Arena arena = Arena.ofConfined()) {
      Map<String, Tensor> tensors = new LinkedHashMap<>(checkpoint.hfTensors());
      Tensor damaged = tensors.get("backbone.norm_f.weight").copyTo(arena);
      damaged.setFloat(Float.NaN, 3);
      tensors.put("backbone.norm_f.weight", damaged);
      TestData.writeModel(folder, tensors, checkpoint);
    }
    Sampler sampler = new Sampler(GREEDY, 256);
    try (Model model = Model.load(folder);
        Session session = model.newSession();
        Session other = model.newSession();
        Batch batch = model.newBatch(2)) {
      var alone = assertThrows(MambaException.class, () -> session.next(sampler, 1, 2));
      assertTrue(alone.getMessage().contains("sequence 0 of the call: logits[0] is NaN"), alone.getMessage());
      var later = assertThrows(ExecutionException.class, () -> session.nextAsync(sampler, 3).get());
      assertEquals(alone.getMessage(), assertInstanceOf(MambaException.class, later.getCause()).getMessage());
      batch.add(session, 4);
      batch.add(other, sampler, 5);
      var among = assertThrows(MambaException.class, batch::next);
      assertTrue(among.getMessage().contains("sequence 1 of the call: logits[0] is NaN"), among.getMessage());
      assertThrows(IllegalStateException.class, () -> batch.token(1));
      session.advance(6);
      assertTrue(Float.isNaN(session.logits().getFloat(0)));
      session.reset();
      assertEquals(0, session.position());
    }
    assertEquals(1, next(sampler, logits(0, 2, 1)));
  }

  @Test
  void extremeValuesStayHarmless() {
    float[] extreme = {Float.MAX_VALUE, -Float.MAX_VALUE, 0};
    for (float temperature : new float[] {Float.MIN_VALUE, 1, Float.MAX_VALUE}) {
      Sampler sampler = new Sampler(GREEDY.withTemperature(temperature).withRepetitionPenalty(0.1f), 3);
      sampler.observe(0, 1, -1, 99);
      int id = next(sampler, logits(extreme));
      assertTrue(id == 0 || temperature == Float.MAX_VALUE, "temperature " + temperature + " chose " + id);
    }
  }

  @Test
  void wrongTensorsAndOptionsAreRefused() {
    Sampler sampler = new Sampler(GREEDY, 3);
    assertThrows(IllegalArgumentException.class, () -> next(sampler, logits(1, 2).reshape(1, 2)));
    assertThrows(UnsupportedOperationException.class,
        () -> next(sampler, Tensor.allocate(Arena.ofAuto(), DType.F16, 3)));
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
}
