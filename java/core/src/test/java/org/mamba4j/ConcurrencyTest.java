package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Threads against the contract: right use gives right results, wrong use an exception, nothing a crash or a leak. */
@Timeout(180)
class ConcurrencyTest {
  private long before;

  @BeforeEach
  void countBytes() {
    before = Engine.nativeBytes();
  }

  @AfterEach
  void nothingLeaked() {
    assertEquals(before, Engine.nativeBytes());
  }

  @Test
  void manyThreadsShareAModel() throws Exception {
    int[] tokens = TestData.tokens(30, 256, 1);
    try (Model model = Model.load(TestData.golden("mamba2-g2"));
        var executor = Executors.newVirtualThreadPerTaskExecutor()) {
      float[] expected;
      try (Session session = model.newSession()) {
        expected = session.advanceAll(tokens).toFloatArray();
      }
      List<Future<float[]>> results = new ArrayList<>();
      for (int t = 0; t < 16; t++) {
        results.add(
            executor.submit(
                () -> {
                  try (Session session = model.newSession()) {
                    return session.advanceAll(tokens).toFloatArray();
                  }
                }));
      }
      for (Future<float[]> result : results) {
        assertArrayEquals(expected, result.get());
      }
    }
  }

  @Test
  void twoThreadsOnOneSessionGetAnExceptionAndNoTokenIsLost() throws Exception {
    AtomicInteger accepted = new AtomicInteger();
    AtomicInteger refused = new AtomicInteger();
    try (Model model = Model.load(TestData.golden("mamba1-tied"));
        Session session = model.newSession()) {
      try (var executor = Executors.newFixedThreadPool(3)) {
        for (int t = 0; t < 3; t++) {
          executor.submit(
              () -> {
                for (int i = 0; i < 20_000 && (i < 300 || refused.get() == 0); i++) {
                  try {
                    session.advance(i % 256);
                    accepted.incrementAndGet();
                  } catch (IllegalStateException e) {
                    assertTrue(e.getMessage().contains("in use"), e.getMessage());
                    refused.incrementAndGet();
                  }
                }
              });
        }
      }
      assertEquals(accepted.get(), session.position());
      assertTrue(refused.get() > 0, "the threads never met");
    }
  }

  @Test
  void closingWaitsForRunningCalls() throws Exception {
    int[] prompt = TestData.tokens(400, 256, 2);
    try (var executor = Executors.newCachedThreadPool()) {
      for (int round = 0; round < 40; round++) {
        Model model = Model.load(TestData.golden("mamba2-g1"));
        Session session = model.newSession();
        Session other = model.newSession();
        Batch batch = model.newBatch(2);
        CountDownLatch started = new CountDownLatch(2);
        Future<?> decoding =
            executor.submit(
                () -> {
                  started.countDown();
                  while (true) {
                    session.advance(prompt);
                  }
                });
        Future<?> batching =
            executor.submit(
                () -> {
                  started.countDown();
                  while (true) {
                    batch.clear();
                    batch.add(other, prompt);
                    batch.advanceAll();
                  }
                });
        started.await();
        Thread.sleep(ThreadLocalRandom.current().nextInt(4));
        List<AutoCloseable> order =
            switch (round % 4) {
              case 0 -> List.of(model, session, other, batch);
              case 1 -> List.of(session, other, batch, model);
              case 2 -> List.of(batch, model, other, session);
              default -> List.of(other, model, model, session, batch);
            };
        List<Future<?>> closing = new ArrayList<>();
        for (AutoCloseable resource : order) {
          closing.add(executor.submit(() -> {
            resource.close();
            return null;
          }));
        }
        for (Future<?> close : closing) {
          close.get();
        }
        for (Future<?> loop : List.of(decoding, batching)) {
          Throwable cause = assertThrows(ExecutionException.class, loop::get).getCause();
          assertEquals(IllegalStateException.class, cause.getClass(), () -> "unexpected: " + cause);
          assertTrue(cause.getMessage().endsWith("is closed"), cause.getMessage());
        }
        assertEquals(before, Engine.nativeBytes());
      }
    }
  }

  @Test
  void sessionsMayBeMadeWhileTheModelCloses() throws Exception {
    try (var executor = Executors.newCachedThreadPool()) {
      for (int round = 0; round < 40; round++) {
        Model model = Model.load(TestData.golden("mamba1-tied"));
        List<Future<?>> users = new ArrayList<>();
        CountDownLatch started = new CountDownLatch(3);
        for (int t = 0; t < 3; t++) {
          users.add(
              executor.submit(
                  () -> {
                    started.countDown();
                    while (true) {
                      try (Session session = model.newSession()) {
                        session.advance(1, 2, 3);
                        session.fork().close();
                      }
                    }
                  }));
        }
        started.await();
        Thread.sleep(ThreadLocalRandom.current().nextInt(4));
        model.close();
        for (Future<?> user : users) {
          Throwable cause = assertThrows(ExecutionException.class, user::get).getCause();
          assertEquals("the model is closed", cause.getMessage());
        }
        assertEquals(before, Engine.nativeBytes());
      }
    }
  }

  @Test
  void anInterruptedThreadStillComputes() throws IOException {
    try (Model model = Model.load(TestData.golden("mamba1-tied"));
        Session session = model.newSession()) {
      Thread.currentThread().interrupt();
      session.advance(1, 2, 3);
      assertTrue(Thread.interrupted());
      assertEquals(3, session.position());
    }
  }
}
