package org.mamba4j.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(60)
class CallGateTest {
  private final CallGate gate = new CallGate("the thing");

  @Test
  void sharedCallsEnterTogetherAndAloneExcludes() {
    gate.enter();
    gate.enter();
    var busy = assertThrows(IllegalStateException.class, gate::enterAlone);
    assertTrue(busy.getMessage().startsWith("the thing is in use"), busy.getMessage());
    gate.leave();
    gate.leave();
    gate.enterAlone();
    assertThrows(IllegalStateException.class, gate::enterAlone);
    gate.leave();
  }

  @Test
  void nothingEntersOnceClosed() {
    gate.close(() -> {});
    assertTrue(gate.isClosed());
    assertFalse(gate.tryEnter());
    for (var use : new Runnable[] {gate::enter, gate::enterAlone, gate::checkOpen}) {
      assertEquals("the thing is closed", assertThrows(IllegalStateException.class, use::run).getMessage());
    }
  }

  @Test
  void closeWaitsForTheLastCallAndKeepsTheInterrupt() throws Exception {
    AtomicBoolean released = new AtomicBoolean();
    try (var executor = Executors.newVirtualThreadPerTaskExecutor()) {
      gate.enter();
      gate.enter();
      CountDownLatch started = new CountDownLatch(1);
      Future<Boolean> closing =
          executor.submit(
              () -> {
                Thread.currentThread().interrupt();
                started.countDown();
                gate.close(() -> released.set(true));
                return Thread.interrupted();
              });
      started.await();
      gate.leave();
      assertThrows(TimeoutException.class, () -> closing.get(50, TimeUnit.MILLISECONDS));
      assertFalse(released.get());
      gate.leave();
      assertTrue(closing.get());
      assertTrue(released.get());
    }
  }

  @Test
  void releasesOnceHoweverManyClose() throws Exception {
    for (int round = 0; round < 200; round++) {
      CallGate raced = new CallGate("the thing");
      AtomicInteger releases = new AtomicInteger();
      AtomicInteger inside = new AtomicInteger();
      try (var executor = Executors.newFixedThreadPool(4)) {
        for (int t = 0; t < 2; t++) {
          executor.submit(
              () -> {
                while (raced.tryEnter()) {
                  inside.incrementAndGet();
                  inside.decrementAndGet();
                  raced.leave();
                }
              });
          executor.submit(
              () ->
                  raced.close(
                      () -> {
                        assertEquals(0, inside.get());
                        releases.incrementAndGet();
                      }));
        }
      }
      assertEquals(1, releases.get());
    }
  }
}
