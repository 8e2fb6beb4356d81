package org.mamba4j.integration;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.mamba4j.Batch;
import org.mamba4j.Engine;
import org.mamba4j.EngineOptions;
import org.mamba4j.Model;
import org.mamba4j.Sampler;
import org.mamba4j.SamplingOptions;
import org.mamba4j.Session;

/** Asynchronous calls: the same results, exceptions where they belong, no thread, memory or session left behind. */
@Timeout(120)
class AsyncTest {
  /** Tokens that take long enough to look at a session meanwhile. */
  private static final int IN_FLIGHT = Goldens.DEVICE.isCuda() ? 3_000_000 : 50_000;

  private long before;

  static List<Path> families() {
    return Goldens.families();
  }

  @BeforeEach
  void countBytes() {
    before = Engine.nativeBytes();
  }

  @AfterEach
  void nothingLeaked() {
    assertEquals(before, Engine.nativeBytes());
  }

  @ParameterizedTest
  @MethodSource("families")
  void theSameAsWaiting(Path folder) throws Exception {
    try (Model model = Model.load(folder, Goldens.options());
        Session session = model.newSession();
        Session twin = model.newSession()) {
      for (int length : new int[] {1, 33, 1, 400}) {
        int[] tokens = tokens(length);
        session.advanceAsync(tokens).get();
        twin.advance(tokens);
        assertEquals(twin.position(), session.position());
        assertArrayEquals(twin.logits().toFloatArray(), session.logits().toFloatArray());
      }
      assertArrayEquals(twin.ssmState().toFloatArray(), session.ssmState().toFloatArray());
    }
  }

  @Test
  void batchesToo() throws Exception {
    try (Model model = Model.load(Goldens.folder("mamba2-g2"), Goldens.options());
        Batch batch = model.newBatch(3);
        Batch waiting = model.newBatch(3)) {
      List<Session> sessions = new ArrayList<>();
      for (int i = 0; i < 3; i++) {
        sessions.add(model.newSession());
        sessions.add(model.newSession());
        int[] tokens = tokens(1 + 20 * i);
        batch.add(sessions.get(2 * i), tokens);
        waiting.add(sessions.get(2 * i + 1), tokens);
      }
      batch.advanceAsync().get();
      waiting.advance();
      for (int i = 0; i < 3; i++) {
        assertArrayEquals(waiting.logits(i).toFloatArray(), batch.logits(i).toFloatArray());
        assertEquals(1 + 20 * i, sessions.get(2 * i).position());
      }
      assertThrows(IllegalStateException.class, batch::advanceAsync); // until it is cleared
      sessions.forEach(Session::close);
    }
  }

  @Test
  void inFlightNothingElseMayUseTheSession() throws Exception {
    try (Model model = Model.load(Goldens.folder("mamba1-tied"), Goldens.options());
        Session session = model.newSession();
        Session other = model.newSession();
        Batch batch = model.newBatch(2)) {
      session.advance(1);
      CompletableFuture<Void> future = session.advanceAsync(tokens(IN_FLIGHT));
      assertThrows(IllegalStateException.class, session::logits);
      assertMessage("in use", () -> session.advance(1));
      assertMessage("in use", () -> session.advanceAsync(1));
      assertMessage("in use", session::fork);
      assertMessage("in use", session::snapshot);
      assertMessage("in use", session::reset);
      batch.add(other, 1);
      batch.add(session, 1);
      assertMessage("in use", batch::advance);
      assertMessage("in use", batch::advanceAsync);
      assertFalse(future.isDone());
      other.advance(1); // was given back
      future.get();
      assertEquals(IN_FLIGHT + 1, session.position());
      batch.advanceAsync().get();
      assertEquals(IN_FLIGHT + 2, session.position());
      assertEquals(2, other.position());
    }
  }

  @Test
  void closingWaitsForWhatIsInFlight() throws Exception {
    for (int round = 0; round < 12; round++) {
      Model model = Model.load(Goldens.folder("mamba2-g1"), Goldens.options());
      Session session = model.newSession();
      CompletableFuture<Void> future = session.advanceAsync(tokens(3000));
      switch (round % 3) {
        case 0 -> session.close();
        case 1 -> model.close();
        default -> model.engine().close(); // the model keeps what it needs
      }
      future.get(60, TimeUnit.SECONDS);
      assertEquals(3000, session.position());
      session.close();
      model.close();
      assertEquals(before, Engine.nativeBytes());
      assertThrows(IllegalStateException.class, () -> session.advanceAsync(1));
    }
  }

  @Test
  void aClosedEngineStillServesItsModels() throws Exception {
    Engine engine = Engine.create(EngineOptions.defaults().withDevice(Goldens.DEVICE).withThreads(2));
    try (Model model = Model.load(Goldens.folder("mamba1-tied"), Goldens.options().withEngine(engine));
        Session session = model.newSession()) {
      engine.close();
      session.advanceAsync(1, 2, 3).get();
      assertEquals(3, session.position());
    } finally {
      engine.close();
    }
  }

  @Test
  void wrongCallsAreRefusedAtOnce() throws IOException {
    try (Model model = Model.load(Goldens.folder("mamba1-tied"), Goldens.options());
        Session session = model.newSession();
        Batch batch = model.newBatch(1)) {
      assertThrows(IllegalArgumentException.class, session::advanceAsync);
      assertThrows(IllegalArgumentException.class, () -> session.advanceAsync(-1));
      assertThrows(IllegalStateException.class, batch::advanceAsync);
      session.advanceAsync(5).join(); // nothing of it has stayed
      assertEquals(1, session.position());
    }
  }

  /** What depends on a future may use, wait for and close anything: no completion needs its thread. */
  @Test
  void dependentsMayBlock() throws Exception {
    try (Model model = Model.load(Goldens.folder("mamba1-tied"), Goldens.options())) {
      Session first = model.newSession();
      Session second = model.newSession();
      CompletableFuture<Void> slow = second.advanceAsync(tokens(20_000));
      CompletableFuture<Void> chain =
          first
              .advanceAsync(1)
              .thenRun(() -> first.advance(2))
              .thenCompose(nothing -> first.advanceAsync(3))
              .thenRun(second::close)
              .thenRun(first::close);
      chain.get();
      slow.get(60, TimeUnit.SECONDS);
      assertEquals(20_000, second.position());
      assertEquals(3, first.position());
      CompletableFuture<Void> failing = model.newSession().advanceAsync(1).thenRun(() -> first.advance(4));
      var thrown = assertThrows(ExecutionException.class, failing::get);
      assertEquals(IllegalStateException.class, thrown.getCause().getClass());
    }
  }

  @Test
  void tokensAreChosenAsynchronouslyToo() throws Exception {
    SamplingOptions options = SamplingOptions.random(1, 3);
    try (Model model = Model.load(Goldens.folder("mamba2-g2"), Goldens.options());
        Session session = model.newSession();
        Session twin = model.newSession()) {
      Sampler sampler = new Sampler(options, 256);
      Sampler twins = new Sampler(options, 256);
      int token = 1;
      for (int i = 0; i < 20; i++) {
        int expected = twin.next(twins, token);
        token = session.nextAsync(sampler, token).get();
        assertEquals(expected, token);
        assertEquals(twins.logProb(), sampler.logProb());
      }
      assertEquals(20, session.position());
      assertThrows(IllegalStateException.class, session::logits);
      assertThrows(IllegalArgumentException.class, () -> session.nextAsync(sampler));
      CompletableFuture<Integer> future = session.nextAsync(sampler, tokens(IN_FLIGHT));
      assertMessage("in use", () -> twin.next(sampler, 1));
      assertMessage("in use", sampler::reset);
      future.get();
      sampler.reset();
    }
  }

  @Test
  void manyVirtualThreadsShareAnEngine() throws Exception {
    int[] tokens = tokens(20);
    try (Model model = Model.load(Goldens.folder("mamba2-g1"), Goldens.options());
        Session alone = model.newSession();
        var executor = Executors.newVirtualThreadPerTaskExecutor()) {
      for (int token : tokens) {
        alone.advance(token);
      }
      float[] expected = alone.logits().toFloatArray();
      List<Future<float[]>> results = new ArrayList<>();
      for (int t = 0; t < 100; t++) {
        results.add(
            executor.submit(
                () -> {
                  try (Session session = model.newSession()) {
                    for (int token : tokens) {
                      session.advanceAsync(token).get();
                    }
                    return session.logits().toFloatArray();
                  }
                }));
      }
      for (Future<float[]> result : results) {
        assertArrayEquals(expected, result.get());
      }
    }
  }

  @Test
  void waitingCostsNoProcessorAndThreadsEnd() throws Exception {
    var threads = ManagementFactory.getThreadMXBean();
    Thread reaper;
    Set<Thread> before = Thread.getAllStackTraces().keySet();
    try (Model model = Model.load(Goldens.folder("mamba1-tied"), Goldens.options());
        Session session = model.newSession()) {
      session.advanceAsync(1).get();
      reaper =
          Thread.getAllStackTraces().keySet().stream()
              .filter(thread -> thread.getName().equals("mamba4j-completions") && !before.contains(thread))
              .findAny()
              .orElseThrow();
      long cpuBefore = threads.getThreadCpuTime(reaper.threadId());
      Thread.sleep(300);
      assertTrue(threads.getThreadCpuTime(reaper.threadId()) - cpuBefore < 30_000_000, "the thread does not sleep");
      assertTrue(reaper.isDaemon());
    }
    assertFalse(reaper.isAlive());
  }

  @Test
  void aCancelledFutureStopsNothing() throws Exception {
    try (Model model = Model.load(Goldens.folder("mamba1-tied"), Goldens.options());
        Session session = model.newSession()) {
      CompletableFuture<Void> future = session.advanceAsync(tokens(5000));
      assertTrue(future.cancel(true));
      assertThrows(CancellationException.class, future::join);
      while (true) {
        try {
          session.advance(1);
          break;
        } catch (IllegalStateException inFlight) {
          Thread.onSpinWait();
        }
      }
      assertEquals(5001, session.position());
    }
  }

  private static int[] tokens(int count) {
    return new Random(count).ints(count, 0, 256).toArray();
  }

  private static void assertMessage(String part, Runnable misuse) {
    String message = assertThrows(IllegalStateException.class, misuse::run).getMessage();
    assertTrue(message.contains(part), message);
  }
}
