package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.foreign.Arena;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Flow;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.EngineOptions;
import org.mamba4j.Ops;
import org.mamba4j.Sampler;
import org.mamba4j.SamplingOptions;
import org.mamba4j.Tensor;

/** The generation loop over a model that says what a script tells it to. */
@Timeout(60)
class GenerationTest {
  private static final int VOCAB = 4096;
  private static final int END = 0;
  private static Tokenizer tokenizer;
  private static Engine engine;

  @BeforeAll
  static void load() {
    tokenizer = Fixtures.demoTokenizer();
    engine = Engine.create(EngineOptions.defaults().withThreads(1));
  }

  @AfterAll
  static void close() {
    tokenizer.close();
    engine.close();
  }

  private static int sample(Tensor logits, Sampler sampler) {
    return sampler == null ? 0 : Ops.sample(engine, logits, sampler);
  }

  /** Always prefers the next id of the script, then the end token; checks that it is fed what it said. */
  private static final class Script implements Generation.Forward {
    final int[] ids;
    final int promptLength;
    final List<Integer> fed = new ArrayList<>();
    final AtomicInteger calls = new AtomicInteger();
    final AtomicInteger closed = new AtomicInteger();
    final CountDownLatch released = new CountDownLatch(1);
    final Tensor logits = Tensor.allocate(Arena.ofAuto(), DType.F32, VOCAB);
    Runnable beforeCall = () -> {};
    private int preferred;

    Script(int promptLength, int... ids) {
      this.promptLength = promptLength;
      this.ids = ids;
    }

    @Override
    public int next(Sampler sampler, int[] tokens, int from, int length) {
      beforeCall.run();
      calls.incrementAndGet();
      for (int i = from; i < from + length; i++) {
        fed.add(tokens[i]);
      }
      logits.setFloat(0, preferred);
      int step = fed.size() - promptLength;
      preferred = step < ids.length && step >= 0 ? ids[step] : END;
      logits.setFloat(10, preferred);
      return sample(logits, sampler);
    }

    void release() {
      closed.incrementAndGet();
      released.countDown();
    }
  }

  private static int[] ids(String text) {
    return tokenizer.encodeWithoutSpecialTokens(text);
  }

  private static Script script(String text) {
    return new Script(1, ids(text));
  }

  private static Generation generation(Script script, GenerationOptions options) {
    Set<Integer> stops = options.stopTokens() == null ? Set.of(END) : options.stopTokens();
    int[] prompt = new int[script.promptLength];
    return new Generation(
        script, script::release, prompt, VOCAB, tokenizer.newStreamDecoder(prompt), stops, options);
  }

  private static List<GeneratedToken> drain(Generation generation) {
    List<GeneratedToken> tokens = new ArrayList<>();
    for (GeneratedToken token = generation.next(); token != null; token = generation.next()) {
      tokens.add(token);
    }
    return tokens;
  }

  private static String texts(List<GeneratedToken> tokens) {
    return String.join("", tokens.stream().map(GeneratedToken::text).toList());
  }

  private static GenerationResult run(Script script, GenerationOptions options) {
    try (Generation generation = generation(script, options)) {
      List<GeneratedToken> tokens = drain(generation);
      GenerationResult result = generation.result();
      assertEquals(result.text(), texts(tokens), "the pieces add up");
      assertArrayEquals(result.tokens(), tokens.stream().mapToInt(GeneratedToken::id).toArray());
      for (int i = 0; i < tokens.size(); i++) {
        assertEquals(i, tokens.get(i).index());
        assertTrue(tokens.get(i).logProb() <= 0);
      }
      return result;
    }
  }

  @Test
  void aStopTokenEndsTheTextAndIsNoText() {
    Script script = script("int x = 1;");
    GenerationResult result = run(script, GenerationOptions.defaults());
    assertEquals("int x = 1;", result.text());
    assertEquals(FinishReason.STOP_TOKEN, result.finishReason());
    int[] tokens = result.tokens();
    assertEquals(END, tokens[tokens.length - 1]);
    assertArrayEquals(new int[1], result.promptTokens());
    assertEquals(1, script.closed.get());
    assertEquals(tokens.length, script.calls.get(), "the stop token itself is not fed");
    assertTrue(result.timeToFirstToken().compareTo(Duration.ZERO) > 0);
    assertTrue(result.decodeTokensPerSecond() > 0);
  }

  @Test
  void ownStopTokensReplaceTheModels() {
    int[] script = ids("int x = 1;");
    GenerationResult result = run(new Script(1, script), GenerationOptions.defaults().withStopTokens(script[2]));
    assertArrayEquals(Arrays.copyOf(script, 3), result.tokens());
    assertEquals(tokenizer.decode(Arrays.copyOf(script, 2)), result.text());
    GenerationResult endless =
        run(new Script(1, script), GenerationOptions.defaults().withStopTokens().withMaxNewTokens(50));
    assertEquals(50, endless.tokens().length);
    assertEquals("int x = 1;", endless.text());
    assertEquals(FinishReason.LENGTH, endless.finishReason());
  }

  @Test
  void lengthEndsWithExactlySoManyTokens() {
    int[] script = ids("int x = 1;");
    for (int n = 1; n < script.length; n++) {
      Script model = new Script(1, script);
      GenerationResult result = run(model, GenerationOptions.defaults().withMaxNewTokens(n));
      assertArrayEquals(Arrays.copyOf(script, n), result.tokens());
      assertEquals(tokenizer.decode(result.tokens()), result.text());
      assertEquals(FinishReason.LENGTH, result.finishReason());
      assertEquals(n, model.calls.get());
    }
    assertEquals(0, run(script("x"), GenerationOptions.defaults().withMaxNewTokens(1)).decodeTokensPerSecond());
  }

  @Test
  void stopStringsMaySpanTokens() {
    String text = "int x = 1;\n\npublic void y() {}";
    for (String stop : List.of(";\n\npub", "\n\n", "x = 1", "int", "1;", "}", "void y")) {
      GenerationResult result = run(script(text), GenerationOptions.defaults().withStopStrings("never", stop));
      assertEquals(text.substring(0, text.indexOf(stop)), result.text(), stop);
      assertEquals(FinishReason.STOP_STRING, result.finishReason());
      assertTrue(tokenizer.decode(result.tokens()).contains(stop), "the tokens reach to the stop string");
    }
    GenerationResult without = run(script(text), GenerationOptions.defaults().withStopStrings("}}", "\n\nprivate"));
    assertEquals(text, without.text(), "held back text is shown at the end");
    assertEquals(FinishReason.STOP_TOKEN, without.finishReason());
  }

  @Test
  void nothingOfAStopStringIsEverShown() {
    String text = "a\n\npublic";
    try (Generation generation = generation(script(text), GenerationOptions.defaults().withStopStrings("\n\npublic"))) {
      for (GeneratedToken token = generation.next(); token != null; token = generation.next()) {
        assertFalse(token.text().contains("\n"), token::toString);
      }
    }
  }

  @Test
  void charactersOfSeveralTokensArriveWhole() {
    String text = "a 😀 é 👩‍👧 日本";
    try (Generation generation = generation(script(text), GenerationOptions.defaults())) {
      StringBuilder shown = new StringBuilder();
      for (GeneratedToken token : drain(generation)) {
        shown.append(token.text());
        assertTrue(text.startsWith(shown.toString()), shown::toString);
        assertFalse(token.text().contains("\uFFFD"));
      }
      assertEquals(text, shown.toString());
    }
    int[] emoji = ids("😀");
    GenerationResult cut = run(new Script(1, emoji), GenerationOptions.defaults().withMaxNewTokens(2));
    assertEquals("\uFFFD", cut.text(), "cut inside a character");
    assertEquals("", run(new Script(1, emoji), GenerationOptions.defaults().withStopStrings("😀")).text());
  }

  @Test
  void promptsAreFedInChunksBetweenWhichCancellationWorks() {
    Script whole = new Script(1300, ids("x"));
    assertEquals("x", run(whole, GenerationOptions.defaults()).text());
    assertEquals(3 + 1, whole.calls.get());

    Cancellation cancellation = new Cancellation();
    Script script = new Script(1300, ids("x"));
    script.beforeCall = () -> {
      if (script.calls.get() == 1) {
        cancellation.cancel();
      }
    };
    GenerationResult result = run(script, GenerationOptions.defaults().withCancellation(cancellation));
    assertEquals(FinishReason.CANCELLED, result.finishReason());
    assertEquals(0, result.tokens().length);
    assertEquals("", result.text());
    assertEquals(Duration.ZERO, result.timeToFirstToken());
    assertEquals(2, script.calls.get(), "the third chunk is not fed");
  }

  @Test
  void cancellationBetweenTokensKeepsWhatIsThere() {
    Cancellation cancellation = new Cancellation();
    Script script = script("int x = 1;");
    try (Generation generation = generation(script, GenerationOptions.defaults().withCancellation(cancellation))) {
      GeneratedToken first = generation.next();
      cancellation.cancel();
      assertNull(generation.next());
      assertNull(generation.next());
      GenerationResult result = generation.result();
      assertEquals(FinishReason.CANCELLED, result.finishReason());
      assertArrayEquals(new int[] {first.id()}, result.tokens());
      assertEquals(first.text(), result.text());
      assertEquals(1, script.calls.get());
    }
  }

  @Test
  void equalSeedsGiveEqualTexts() {
    Random random = new Random(4);
    float[] values = new float[VOCAB];
    for (int i = 0; i < VOCAB; i++) {
      values[i] = (float) random.nextGaussian();
    }
    Tensor logits = Fixtures.logits(values);
    List<int[]> runs = Stream.of(1L, 1L, 2L).map(seed -> {
      GenerationOptions options = GenerationOptions.defaults()
          .withMaxNewTokens(30).withStopTokens().withSampling(SamplingOptions.random(1, seed));
      try (var generation = new Generation(
          (sampler, _, _, _) -> sample(logits, sampler), () -> {}, new int[] {1}, VOCAB, null, Set.of(), options)) {
        drain(generation);
        assertEquals("", generation.result().text(), "no tokenizer, no text");
        return generation.result().tokens();
      }
    }).toList();
    assertArrayEquals(runs.get(0), runs.get(1));
    assertFalse(Arrays.equals(runs.get(0), runs.get(2)));
  }

  @Test
  void thePromptCountsForTheRepetitionPenalty() {
    int[] prompt = {5};
    Tensor logits = Fixtures.logits(0, 1, 2, 3, 4, 5, 4.5f);
    var options = GenerationOptions.defaults()
        .withMaxNewTokens(1).withSampling(SamplingOptions.greedy().withRepetitionPenalty(2));
    try (var generation = new Generation(
        (sampler, _, _, _) -> sample(logits, sampler), () -> {}, prompt, 7, null, Set.of(), options)) {
      assertEquals(6, generation.next().id());
    }
  }

  @Test
  void aStreamComputesWhatIsAskedForAndReleasesTheSequence() {
    Script script = script("int x = 1; int y = 2;");
    Stream<GeneratedToken> stream = TextModel.stream(generation(script, GenerationOptions.defaults()));
    assertEquals(0, script.calls.get());
    assertEquals(3, stream.limit(3).toList().size());
    assertEquals(3, script.calls.get());
    stream.close();
    assertTrue(script.closed.get() > 0);

    Script whole = script("int x = 1;");
    assertEquals("int x = 1;", texts(TextModel.stream(generation(whole, GenerationOptions.defaults())).toList()));
    assertEquals(1, whole.closed.get(), "reading to the end releases it");

    Script failing = script("x");
    failing.beforeCall = () -> {
      throw new IllegalStateException("broken");
    };
    Stream<GeneratedToken> broken = TextModel.stream(generation(failing, GenerationOptions.defaults()));
    assertEquals("broken", assertThrows(IllegalStateException.class, broken::toList).getMessage());
    assertEquals(1, failing.closed.get());
  }

  private static final class Subscriber implements Flow.Subscriber<GeneratedToken> {
    final LinkedBlockingQueue<Object> signals = new LinkedBlockingQueue<>();
    final CountDownLatch subscribed = new CountDownLatch(1);
    Flow.Subscription subscription;

    @Override
    public void onSubscribe(Flow.Subscription s) {
      subscription = s;
      subscribed.countDown();
    }

    @Override
    public void onNext(GeneratedToken token) {
      signals.add(token);
    }

    @Override
    public void onError(Throwable e) {
      signals.add(e);
    }

    @Override
    public void onComplete() {
      signals.add("complete");
    }

    Object take() throws InterruptedException {
      return signals.poll(20, TimeUnit.SECONDS);
    }

    void silence() throws InterruptedException {
      assertNull(signals.poll(200, TimeUnit.MILLISECONDS));
    }
  }

  private static Subscriber subscribe(Script script, GenerationOptions options) {
    Subscriber subscriber = new Subscriber();
    new TokenPublisher(() -> generation(script, options)).subscribe(subscriber);
    return subscriber;
  }

  @Test
  void aPublisherHonoursDemand() throws InterruptedException {
    int[] ids = ids("int x = 1;");
    Script script = new Script(1, ids);
    Subscriber subscriber = subscribe(script, GenerationOptions.defaults());
    subscriber.silence();
    assertEquals(0, script.calls.get());

    subscriber.subscription.request(2);
    assertEquals(ids[0], ((GeneratedToken) subscriber.take()).id());
    assertEquals(ids[1], ((GeneratedToken) subscriber.take()).id());
    subscriber.silence();
    assertEquals(2, script.calls.get(), "no token is computed ahead of demand");

    subscriber.subscription.request(Long.MAX_VALUE);
    subscriber.subscription.request(Long.MAX_VALUE);
    for (int i = 2; i < ids.length; i++) {
      assertEquals(ids[i], ((GeneratedToken) subscriber.take()).id());
    }
    assertEquals(END, ((GeneratedToken) subscriber.take()).id());
    assertEquals("complete", subscriber.take());
    assertEquals(1, script.closed.get(), "released before the last signal");
    subscriber.silence();
  }

  @Test
  void completionNeedsNoDemand() throws InterruptedException {
    Subscriber subscriber = subscribe(script("int x"), GenerationOptions.defaults().withMaxNewTokens(1));
    subscriber.subscription.request(1);
    assertTrue(subscriber.take() instanceof GeneratedToken);
    assertEquals("complete", subscriber.take());
  }

  @Test
  void cancellingASubscriptionEndsItsGenerationWithoutASignal() throws InterruptedException {
    Script script = new Script(5000, ids("x"));
    CountDownLatch secondChunk = new CountDownLatch(2);
    CountDownLatch cancelled = new CountDownLatch(1);
    script.beforeCall = () -> {
      secondChunk.countDown();
      if (secondChunk.getCount() == 0) {
        await(cancelled);
      }
    };
    Subscriber subscriber = subscribe(script, GenerationOptions.defaults());
    subscriber.subscription.request(1);
    await(secondChunk);
    subscriber.subscription.cancel();
    subscriber.subscription.cancel();
    cancelled.countDown();
    await(script.released);
    subscriber.silence();
    assertEquals(2, script.calls.get(), "the prompt is not fed further");
    assertEquals(1, script.closed.get());

    Subscriber waiting = subscribe(script("x"), GenerationOptions.defaults());
    waiting.subscription.cancel();
    waiting.subscription.request(1);
    waiting.silence();
  }

  private static void await(CountDownLatch latch) {
    try {
      assertTrue(latch.await(20, TimeUnit.SECONDS));
    } catch (InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  @Test
  void failuresReachTheSubscriber() throws InterruptedException {
    Script script = script("x");
    script.beforeCall = () -> {
      throw new IllegalStateException("broken");
    };
    Subscriber subscriber = subscribe(script, GenerationOptions.defaults());
    subscriber.subscription.request(1);
    assertEquals("broken", ((IllegalStateException) subscriber.take()).getMessage());
    assertEquals(1, script.closed.get());
    subscriber.silence();

    Subscriber wrong = subscribe(script("x"), GenerationOptions.defaults());
    wrong.subscription.request(0);
    assertTrue(wrong.take() instanceof IllegalArgumentException);
  }

  @Test
  void eachSubscriberHasItsOwnGeneration() throws InterruptedException {
    AtomicInteger generations = new AtomicInteger();
    TokenPublisher publisher = new TokenPublisher(() -> {
      generations.incrementAndGet();
      return generation(script("x"), GenerationOptions.defaults());
    });
    for (int i = 0; i < 2; i++) {
      Subscriber subscriber = new Subscriber();
      publisher.subscribe(subscriber);
      subscriber.subscription.request(10);
      assertEquals("x", ((GeneratedToken) subscriber.take()).text());
      assertTrue(subscriber.take() instanceof GeneratedToken);
      assertEquals("complete", subscriber.take());
    }
    assertEquals(2, generations.get());
    assertThrows(NullPointerException.class, () -> publisher.subscribe(null));
  }

  @Test
  void optionsAreChecked() {
    GenerationOptions options = GenerationOptions.defaults();
    assertThrows(IllegalArgumentException.class, () -> options.withMaxNewTokens(0));
    assertThrows(IllegalArgumentException.class, () -> options.withStopStrings("a", ""));
    assertThrows(NullPointerException.class, () -> options.withSampling(null));
  }
}
