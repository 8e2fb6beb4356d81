package org.mamba4j;

import java.util.EnumSet;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * Element types of a {@link Tensor}. All are stored little-endian. {@link #Q8_0} and {@link #Q4_0} are block types: 32
 * weights of a row share a scale and have no bytes of their own.
 */
public enum DType {
  /** IEEE 754 binary64. */
  F64(8),
  /** IEEE 754 binary32. */
  F32(4),
  /** IEEE 754 binary16. */
  F16(2),
  /** bfloat16: the upper half of a binary32. */
  BF16(2),
  /** Signed 64-bit integer. */
  I64(8),
  /** Signed 32-bit integer. */
  I32(4),
  /** Signed 16-bit integer. */
  I16(2),
  /** Signed 8-bit integer. */
  I8(1),
  /** Unsigned 8-bit integer. */
  U8(1),
  /** One byte, zero is false. */
  BOOL(1),
  /** GGML's Q8_0, 34 bytes for 32 weights: a binary16 scale and 32 signed bytes; a weight is scale * byte. */
  Q8_0(32, 34),
  /**
   * GGML's Q4_0, 18 bytes for 32 weights: a binary16 scale and 16 bytes, weight i in the lower half of byte i, weight
   * 16 + i in the upper; a weight is scale * (half - 8).
   */
  Q4_0(32, 18);

  private static final Map<String, DType> BY_SAFETENSORS_NAME =
      Stream.of(values())
          .filter(dtype -> !dtype.isBlock())
          .collect(Collectors.toUnmodifiableMap(DType::name, Function.identity()));

  private final int blockSize;
  private final int blockBytes;

  DType(int byteSize) {
    this(1, byteSize);
  }

  DType(int blockSize, int blockBytes) {
    this.blockSize = blockSize;
    this.blockBytes = blockBytes;
  }

  /**
   * Bytes an element takes.
   *
   * @throws UnsupportedOperationException for block types, whose elements have none of their own; see {@link #bytesFor}
   */
  public int byteSize() {
    if (isBlock()) {
      throw new UnsupportedOperationException(
          this + " packs " + blockSize + " elements into " + blockBytes + " bytes; one has no size");
    }
    return blockBytes;
  }

  /** Whether elements are packed in blocks of {@link #blockSize()}. */
  public boolean isBlock() {
    return blockSize > 1;
  }

  /** Elements in a block; 1 unless this is a block type. */
  public int blockSize() {
    return blockSize;
  }

  /** Bytes of a block. */
  public int blockBytes() {
    return blockBytes;
  }

  /** What the address of the first element is a multiple of where native code reads it; any will do for blocks. */
  public int alignment() {
    return isBlock() ? 1 : blockBytes;
  }

  /**
   * Bytes of {@code elements} that follow each other.
   *
   * @throws IllegalArgumentException if they are not whole blocks
   * @throws ArithmeticException if the bytes do not fit into 63 bits
   */
  public long bytesFor(long elements) {
    if (elements < 0 || elements % blockSize != 0) {
      throw new IllegalArgumentException(
          this + ": a multiple of " + blockSize + " elements expected, found " + elements);
    }
    return Math.multiplyExact(elements / blockSize, (long) blockBytes);
  }

  /**
   * The name that the header of a safetensors file uses.
   *
   * @throws UnsupportedOperationException for block types, which that format lacks
   */
  public String safetensorsName() {
    if (isBlock()) {
      throw new UnsupportedOperationException("safetensors has no block types such as " + this);
    }
    return name();
  }

  /** The types that safetensors files hold. */
  public static Set<DType> safetensorsTypes() {
    return EnumSet.copyOf(BY_SAFETENSORS_NAME.values());
  }

  /** The type that a safetensors header calls {@code name}, empty when there is none here. */
  public static Optional<DType> fromSafetensorsName(String name) {
    return Optional.ofNullable(BY_SAFETENSORS_NAME.get(name));
  }

  /** Whether elements are floating-point numbers, packed in blocks or not. */
  public boolean isFloat() {
    return switch (this) {
      case F64, F32, F16, BF16, Q8_0, Q4_0 -> true;
      case I64, I32, I16, I8, U8, BOOL -> false;
    };
  }
}
