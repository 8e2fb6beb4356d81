package org.mamba4j.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.PrintWriter;
import java.io.StringWriter;
import org.junit.jupiter.api.Test;

class ProgressBarTest {
  private final StringWriter out = new StringWriter();
  private long nanos = 123;

  private ProgressBar bar(boolean terminal) {
    return new ProgressBar(new PrintWriter(out), terminal, () -> nanos);
  }

  @Test
  void quickWorkIsNotShown() {
    ProgressBar bar = bar(true);
    bar.progress("config.json", 0, 100);
    nanos += 499_000_000;
    bar.progress("config.json", 100, 100);
    bar.progress("weights", 50, 50);
    assertEquals("", out.toString());
  }

  @Test
  void aTerminalGetsABarThatIsRedrawn() {
    ProgressBar bar = bar(true);
    bar.progress("model.safetensors", 0, 2000);
    nanos += 600_000_000;
    bar.progress("model.safetensors", 1000, 2000);
    nanos += 99_000_000;
    bar.progress("model.safetensors", 1001, 2000); // too soon to draw again
    nanos += 1_000_000;
    bar.progress("model.safetensors", 1500, 2000);
    bar.progress("model.safetensors", 2000, 2000);
    String[] draws = out.toString().split("\r", -1);
    assertEquals(4, draws.length, out.toString());
    String half = "[" + "#".repeat(15) + ".".repeat(15) + "]";
    assertTrue(draws[1].contains("model.safetensors " + half + " 1.0 kB of 2.0 kB, "), draws[1]);
    assertTrue(draws[2].contains(" 1.5 kB of 2.0 kB, "), draws[2]);
    assertTrue(draws[3].contains("[" + "#".repeat(30) + "] 2.0 kB of 2.0 kB, 2.9 kB/s"), draws[3]);
    assertTrue(draws[3].endsWith(System.lineSeparator()), draws[3]);
  }

  @Test
  void elsewhereALineAtTheEnd() {
    ProgressBar bar = bar(false);
    bar.progress("model.safetensors", 0, 2000);
    nanos += 600_000_000;
    bar.progress("model.safetensors", 1000, 2000);
    bar.progress("model.safetensors", 2000, 2000);
    bar.progress("model.safetensors", 2000, 2000);
    assertTrue(out.toString().matches("model\\.safetensors: 2\\.0 kB of 2\\.0 kB, \\S+ k?B/s\\R"), out.toString());
  }

  @Test
  void anUnfinishedBarEndsBeforeTheNext() {
    ProgressBar bar = bar(true);
    bar.progress("first", 0, -1);
    nanos += 600_000_000;
    bar.progress("first", 1000, -1);
    bar.progress("second", 0, 10);
    assertTrue(out.toString().matches("\r.*first \\[\\.{30}] 1\\.0 kB, .*/s\\R"), out.toString());
  }
}
