package org.mamba4j.cli;

import java.util.Locale;

/** Numbers for people. */
final class Text {
  private static final String[] UNITS = {"B", "kB", "MB", "GB", "TB"};

  private Text() {}

  /** {@code 18352608} becomes {@code 18.4 MB}. */
  static String bytes(long bytes) {
    double value = bytes;
    int unit = 0;
    while (value >= 999.5 && unit < UNITS.length - 1) {
      value /= 1000;
      unit++;
    }
    return String.format(Locale.ROOT, unit == 0 ? "%.0f %s" : "%.1f %s", value, UNITS[unit]);
  }

  /** {@code 9139968} becomes {@code 9,139,968}. */
  static String count(long value) {
    return String.format(Locale.ROOT, "%,d", value);
  }
}
