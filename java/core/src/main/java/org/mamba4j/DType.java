package org.mamba4j;

import java.util.Map;
import java.util.Optional;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/** Element types of a {@link Tensor}. All are stored little-endian. */
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
  BOOL(1);

  private static final Map<String, DType> BY_SAFETENSORS_NAME =
      Stream.of(values()).collect(Collectors.toUnmodifiableMap(DType::safetensorsName, Function.identity()));

  private final int byteSize;

  DType(int byteSize) {
    this.byteSize = byteSize;
  }

  /** Bytes an element takes. */
  public int byteSize() {
    return byteSize;
  }

  /** The name that the header of a safetensors file uses. */
  public String safetensorsName() {
    return name();
  }

  /** The type that a safetensors header calls {@code name}, empty when there is none here. */
  public static Optional<DType> fromSafetensorsName(String name) {
    return Optional.ofNullable(BY_SAFETENSORS_NAME.get(name));
  }

  /** Whether elements are floating-point numbers. */
  public boolean isFloat() {
    return switch (this) {
      case F64, F32, F16, BF16 -> true;
      case I64, I32, I16, I8, U8, BOOL -> false;
    };
  }
}
