package org.mamba4j.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.NoSuchFileException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import picocli.CommandLine.TypeConversionException;

class TextTest {
  @ParameterizedTest
  @CsvSource({"0,0 B", "999,999 B", "1000,1.0 kB", "18352608,18.4 MB", "999499999,999.5 MB", "999500000,1.0 GB"})
  void bytes(long bytes, String text) {
    assertEquals(text, Text.bytes(bytes));
  }

  @Test
  void tokenIds() {
    assertArrayEquals(new int[] {1, 20, -3}, TokenIds.parse("1, 20,-3").values());
    int[][] sequences = new TokenIds.Sequences.Converter().convert("1,2;3").values();
    assertArrayEquals(new int[][] {{1, 2}, {3}}, sequences);
  }

  @ParameterizedTest
  @ValueSource(strings = {"", ",", "1,", "a", "1;2", "2147483648", "1.5"})
  void whatIsNotTokenIds(String text) {
    var e = assertThrows(TypeConversionException.class, () -> TokenIds.parse(text));
    assertTrue(e.getMessage().contains("'" + text + "'"), e.getMessage());
  }

  @Test
  void errorsAreOneLine() {
    assertEquals("there is no file a/b", Errors.describe(new NoSuchFileException("a/b")));
    assertEquals("no permission to access a", Errors.describe(new AccessDeniedException("a")));
    assertEquals("first second", Errors.describe(new IOException("first\n  second\n")));
    assertTrue(Errors.describe(new NullPointerException("x")).startsWith("internal error: "));
    assertEquals("out of memory: heap", Errors.describe(new OutOfMemoryError("heap")));
    assertEquals("java.lang.IllegalStateException", Errors.describe(new IllegalStateException()));
  }
}
