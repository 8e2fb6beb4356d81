package org.mamba4j.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.mamba4j.Engine;
import org.mamba4j.ffi.m4j_log_fn;

class NativeLogTest {
  private static final Logger LOGGER = Logger.getLogger("org.mamba4j");

  private final List<String> lines = new ArrayList<>();
  private final Handler handler =
      new Handler() {
        @Override
        public void publish(LogRecord record) {
          lines.add(record.getLevel() + " " + record.getMessage());
          if (record.getMessage().equals("break")) {
            throw new StackOverflowError("a handler that fails");
          }
        }

        @Override
        public void flush() {}

        @Override
        public void close() {}
      };

  @BeforeEach
  void listen() {
    NativeLibrary.load();
    LOGGER.setLevel(Level.FINE);
    LOGGER.setUseParentHandlers(false);
    LOGGER.addHandler(handler);
  }

  @AfterEach
  void stop() {
    LOGGER.removeHandler(handler);
    LOGGER.setUseParentHandlers(true);
    LOGGER.setLevel(null);
  }

  @Test
  void levelsAreJavasAndAFailingHandlerEndsNothing() {
    log(0, "small");
    log(1, "break");
    log(2, "größer {0}");
    log(3, "worst");
    assertEquals(List.of("FINE small", "INFO break", "WARNING größer {0}", "SEVERE worst"), lines);
  }

  @Test
  void theLibraryTellsAboutItsEngines() {
    try (Engine engine = Engine.create()) {
      assertTrue(lines.stream().anyMatch(line -> line.contains(engine.simdTarget())), lines::toString);
    }
  }

  /** Native code's way: through the function pointer. */
  private static void log(int level, String message) {
    try (Arena arena = Arena.ofConfined()) {
      m4j_log_fn.invoke(NativeLog.CALLBACK, MemorySegment.NULL, level, arena.allocateFrom(message));
    }
  }
}
