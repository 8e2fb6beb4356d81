package org.mamba4j;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;

/**
 * State and position of a {@link Session} at one moment. Immutable; its memory is off-heap and GC-managed.
 *
 * <p>The bytes begin with a header of 48, little-endian: "M4JS", u32 version (2), u64 fingerprint of the model, i64
 * position, i64 floats of conv windows, i64 floats of SSM states, u64 checksum. The floats follow as F32. Checksum and
 * model are checked by {@link Session#restore}.
 */
public final class StateSnapshot {
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfLong I64 = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final int MAGIC = 'M' | '4' << 8 | 'J' << 16 | 'S' << 24;
  private static final int VERSION = 2;
  private static final long HEADER_SIZE = 48;

  private final MemorySegment bytes;

  StateSnapshot(MemorySegment bytes) {
    this.bytes = bytes.asReadOnly();
  }

  /**
   * The snapshot that {@link #toByteArray} wrote.
   *
   * @throws IllegalArgumentException if these are not the bytes of a snapshot
   */
  public static StateSnapshot fromByteArray(byte[] bytes) {
    MemorySegment source = MemorySegment.ofArray(bytes);
    if (bytes.length < HEADER_SIZE || source.get(I32, 0) != MAGIC) {
      throw new IllegalArgumentException(
          "these %d bytes are not a state snapshot: a header of %d bytes that begins with 'M4JS' expected"
              .formatted(bytes.length, HEADER_SIZE));
    }
    int version = source.get(I32, 4);
    if (version != VERSION) {
      throw new IllegalArgumentException(
          "state snapshot: version %d expected, found %d".formatted(VERSION, Integer.toUnsignedLong(version)));
    }
    long convFloats = source.get(I64, 24);
    long ssmFloats = source.get(I64, 32);
    long floats = (bytes.length - HEADER_SIZE) / Float.BYTES;
    if (convFloats < 0 || convFloats > floats || ssmFloats != floats - convFloats || bytes.length % Float.BYTES != 0) {
      throw new IllegalArgumentException(
          "state snapshot of %d bytes is cut off or damaged: its header says %d and %d floats behind its %d bytes"
              .formatted(bytes.length, convFloats, ssmFloats, HEADER_SIZE));
    }
    return new StateSnapshot(Arena.ofAuto().allocate(bytes.length, Long.BYTES).copyFrom(source));
  }

  /** A copy as bytes, to be stored or sent. */
  public byte[] toByteArray() {
    if (bytes.byteSize() > Integer.MAX_VALUE - 8) {
      throw new IllegalStateException("a snapshot of " + bytes.byteSize() + " bytes does not fit into a Java array");
    }
    return bytes.toArray(ValueLayout.JAVA_BYTE);
  }

  /** Tokens that had been fed. */
  public long position() {
    return bytes.get(I64, 16);
  }

  /** Length of {@link #toByteArray}. */
  public long byteSize() {
    return bytes.byteSize();
  }

  /** Identifies the model whose state this is: its {@link Model#fingerprint()}. */
  public long modelFingerprint() {
    return bytes.get(I64, 8);
  }

  @Override
  public String toString() {
    return "StateSnapshot[position %d, %d bytes, model %016x]".formatted(position(), byteSize(), modelFingerprint());
  }

  MemorySegment segment() {
    return bytes;
  }
}
