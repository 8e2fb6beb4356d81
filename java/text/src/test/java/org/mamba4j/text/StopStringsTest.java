package org.mamba4j.text;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

class StopStringsTest {
  @Test
  void holdsBackOnlyWhatMayBecomeAStopString() {
    StopStrings stops = new StopStrings(List.of("\n\n", "END"));
    assertEquals("a", stops.accept("a"));
    assertEquals("b", stops.accept("b\n"));
    assertEquals("\nc", stops.accept("c"));
    assertEquals("", stops.accept("E"));
    assertEquals("", stops.accept("N"));
    assertEquals("ENE ", stops.accept("E "));
    assertFalse(stops.found());
    assertEquals("x", stops.accept("xEN"));
    assertEquals("", stops.accept("Dy"));
    assertTrue(stops.found());
    assertEquals("", stops.accept("z"));
    assertEquals("", stops.flush());
  }

  @Test
  void theRestComesWithFlush() {
    StopStrings stops = new StopStrings(List.of("abc"));
    assertEquals("x", stops.accept("xab"));
    assertEquals("ab", stops.flush());
  }

  @Test
  void everySplitOfATextGivesTheSame() {
    Random random = new Random(9);
    for (int round = 0; round < 5000; round++) {
      String text = randomText(random, random.nextInt(20));
      List<String> stops = Stream.generate(() -> randomText(random, 1 + random.nextInt(4))).limit(1 + round % 3).toList();
      int cut = naiveCut(text, stops);
      String expected = cut < 0 ? text : text.substring(0, cut);

      StopStrings filter = new StopStrings(stops);
      StringBuilder shown = new StringBuilder();
      for (int at = 0; at < text.length(); ) {
        int next = Math.min(text.length(), at + 1 + random.nextInt(3));
        shown.append(filter.accept(text.substring(at, next)));
        at = next;
      }
      assertEquals(cut >= 0, filter.found());
      assertEquals(expected, shown.append(filter.flush()).toString(), () -> text + " " + stops);
    }
  }

  private static String randomText(Random random, int length) {
    return random.ints(length, 'a', 'd')
        .collect(StringBuilder::new, StringBuilder::appendCodePoint, StringBuilder::append)
        .toString();
  }

  /** Where the stop string that is complete first begins, or -1. */
  private static int naiveCut(String text, List<String> stops) {
    for (int end = 1; end <= text.length(); end++) {
      String seen = text.substring(0, end);
      int longest = stops.stream().filter(seen::endsWith).mapToInt(String::length).max().orElse(0);
      if (longest > 0) {
        return end - longest;
      }
    }
    return -1;
  }
}
