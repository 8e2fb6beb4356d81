package org.mamba4j.cli;

import java.util.Arrays;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/**
 * Whole numbers as they are written on a command line: {@code 1,2,3}.
 *
 * @param values at least one
 */
record TokenIds(int... values) {

  static TokenIds parse(String text) {
    String[] words = text.split(",", -1);
    int[] values = new int[words.length];
    for (int i = 0; i < words.length; i++) {
      try {
        values[i] = Integer.parseInt(words[i].strip());
      } catch (NumberFormatException e) {
        throw new TypeConversionException(
            "expected whole numbers separated by commas, such as 1,2,3; found '%s' in '%s'".formatted(words[i], text));
      }
    }
    return new TokenIds(values);
  }

  static final class Converter implements ITypeConverter<TokenIds> {
    @Override
    public TokenIds convert(String text) {
      return parse(text);
    }
  }

  /** Several sequences: {@code 1,2,3;4,5}. */
  record Sequences(int[]... values) {

    static final class Converter implements ITypeConverter<Sequences> {
      @Override
      public Sequences convert(String text) {
        return new Sequences(
            Arrays.stream(text.split(";", -1)).map(sequence -> parse(sequence).values()).toArray(int[][]::new));
      }
    }
  }
}
