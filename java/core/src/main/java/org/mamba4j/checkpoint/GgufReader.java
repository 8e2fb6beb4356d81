package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.mismatch;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;

/** A place in the little-endian bytes of a GGUF file; nothing is read beyond their end. */
final class GgufReader {
  private static final ValueLayout.OfLong I64 = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort I16 = ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private final Path path;
  private final MemorySegment bytes;
  private long position;

  GgufReader(Path path, MemorySegment bytes, long position) {
    this.path = path;
    this.bytes = bytes;
    this.position = position;
  }

  Path path() {
    return path;
  }

  long position() {
    return position;
  }

  GgufReader at(long place) {
    return new GgufReader(path, bytes, place);
  }

  byte i8(String what) throws CheckpointException {
    return bytes.get(ValueLayout.JAVA_BYTE, take(what, 1));
  }

  short i16(String what) throws CheckpointException {
    return bytes.get(I16, take(what, Short.BYTES));
  }

  int i32(String what) throws CheckpointException {
    return bytes.get(I32, take(what, Integer.BYTES));
  }

  long i64(String what) throws CheckpointException {
    return bytes.get(I64, take(what, Long.BYTES));
  }

  long u32(String what) throws CheckpointException {
    return Integer.toUnsignedLong(i32(what));
  }

  /** An unsigned 64-bit number from {@code min} to {@code max}. */
  long natural(String what, long min, long max) throws CheckpointException {
    long value = i64(what);
    if (value < min || value > max) {
      throw mismatch(path, what, min + " to " + max, Long.toUnsignedString(value));
    }
    return value;
  }

  /** UTF-8 behind its length of at most {@code max} bytes; what is malformed shows as U+FFFD. */
  String text(String what, int max) throws CheckpointException {
    int length = (int) natural("length of " + what, 0, max);
    return new String(
        bytes.asSlice(take(what, length), length).toArray(ValueLayout.JAVA_BYTE), StandardCharsets.UTF_8);
  }

  void skipText(String what) throws CheckpointException {
    take(what, natural("length of " + what, 0, Long.MAX_VALUE));
  }

  void skip(String what, long count, int width) throws CheckpointException {
    if (count > (bytes.byteSize() - position) / width) {
      throw end(what, count + " elements of " + width + " bytes");
    }
    position += count * width;
  }

  private long take(String what, long length) throws CheckpointException {
    if (length > bytes.byteSize() - position) {
      throw end(what, length + " bytes");
    }
    long begin = position;
    position += length;
    return begin;
  }

  private CheckpointException end(String what, String wanted) {
    return in(
        path,
        "%s: expected %s at byte %d, found the end of the file at %d"
            .formatted(what, wanted, position, bytes.byteSize()));
  }
}
