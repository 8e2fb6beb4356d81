package org.mamba4j;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

class EngineTest {
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
  void reportsWhatItUses() {
    try (Engine engine = Engine.create(EngineOptions.defaults().withThreads(3))) {
      assertEquals(3, engine.threads());
      assertEquals(Engine.simdTargets().getFirst(), engine.simdTarget());
      assertEquals(Device.cpu(), engine.device());
      assertTrue(Engine.nativeBytes() > before);
    }
    try (Engine engine = Engine.create()) {
      assertTrue(engine.threads() >= 1);
    }
  }

  @Test
  void takesEveryInstructionSetItNames() {
    assertFalse(Engine.simdTargets().isEmpty());
    for (String target : Engine.simdTargets()) {
      try (Engine engine = Engine.create(EngineOptions.defaults().withSimdTarget(target))) {
        assertEquals(target, engine.simdTarget());
      }
    }
  }

  @Test
  void refusesWrongOptionsInWords() {
    assertMessage("threads", "-1", () -> EngineOptions.defaults().withThreads(-1));
    assertMessage("threads", "100000", () -> Engine.create(EngineOptions.defaults().withThreads(100_000)));
    var mmx = EngineOptions.defaults().withSimdTarget("mmx");
    String message = assertThrows(UnsupportedOperationException.class, () -> Engine.create(mmx)).getMessage();
    assertTrue(message.contains("simd_target") && message.contains("mmx"), message);
  }

  @Test
  void closesOnceAndRefusesUseAfterwards() {
    Engine engine = Engine.create();
    engine.close();
    engine.close();
    assertEquals("the engine is closed", assertThrows(IllegalStateException.class, engine::threads).getMessage());
    assertThrows(IllegalStateException.class, engine::simdTarget);
    assertEquals(Device.cpu(), engine.device());
  }

  @Test
  void releasesAnEngineThatNobodyCloses() throws InterruptedException {
    for (int i = 0; i < 4; i++) {
      Engine.create(EngineOptions.defaults().withThreads(2));
    }
    assertNotEquals(before, Engine.nativeBytes());
    for (int i = 0; i < 200 && Engine.nativeBytes() != before; i++) {
      System.gc();
      Thread.sleep(10);
    }
  }

  @Test
  void devicesHaveNames() {
    assertEquals("cpu", Device.cpu().toString());
    assertEquals(Device.cpu(), Device.parse("cpu"));
    assertEquals(Device.cuda(0), Device.parse("cuda"));
    assertEquals(Device.cuda(12), Device.parse("cuda:12"));
    assertEquals("cuda:12", Device.cuda(12).toString());
    assertMessage("cuda:-1", "is unknown", () -> Device.parse("cuda:-1"));
    assertThrows(IllegalArgumentException.class, () -> Device.cuda(-1));
    assertMessage("tpu", "expected 'cpu'", () -> Device.parse("tpu"));
  }

  private static void assertMessage(String name, String found, Runnable misuse) {
    String message = assertThrows(IllegalArgumentException.class, misuse::run).getMessage();
    assertTrue(message.contains(name) && message.contains(found), message);
  }
}
