package org.mamba4j.cli;

import java.util.Arrays;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/** Token ids as they are written on a command line: {@code 1,2,3} for a sequence, {@code 1,2,3;4,5} for several. */
final class TokenIds {
  private TokenIds() {}

  static int[] parse(String text) {
    String[] words = text.split(",", -1);
    int[] ids = new int[words.length];
    for (int i = 0; i < words.length; i++) {
      try {
        ids[i] = Integer.parseInt(words[i].strip());
      } catch (NumberFormatException e) {
        throw new TypeConversionException(
            "expected numbers separated by commas, such as 1,2,3; found '" + words[i].strip() + "' in '" + text + "'");
      }
    }
    return ids;
  }

  static final class Sequence implements ITypeConverter<int[]> {
    @Override
    public int[] convert(String text) {
      return parse(text);
    }
  }

  static final class Sequences implements ITypeConverter<int[][]> {
    @Override
    public int[][] convert(String text) {
      return Arrays.stream(text.split(";", -1)).map(TokenIds::parse).toArray(int[][]::new);
    }
  }
}
