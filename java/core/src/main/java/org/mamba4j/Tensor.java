package org.mamba4j;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Objects;
import org.mamba4j.internal.FloatConversion;
import org.mamba4j.internal.OffHeap;

/**
 * A view on memory: a {@link MemorySegment}, an element type, a shape and strides. Nothing is copied unless a method's
 * name says so. Strides count elements and are never negative; elements are little-endian.
 *
 * <p>A tensor of a block type ({@link DType#isBlock()}) is contiguous, its rows whole blocks, and its elements cannot
 * be set one by one; views that would not be so are refused with {@link IllegalArgumentException}.
 *
 * <p>The segment decides about lifetime and access: once its arena is closed every access throws
 * {@link IllegalStateException}, and so does access from a thread that does not own a confined arena. A tensor itself
 * is immutable and may be shared by threads; its elements are unsynchronised.
 *
 * <p>The memory may also be a GPU's ({@link #device()}): allocated with an engine on it, or handed over as an address.
 * Views and lifetimes are the same, {@link Ops} on an engine of that device take the tensor, and what asks for elements
 * or for {@link #segment()} throws {@link UnsupportedOperationException}: copy the tensor with {@link #toHost}.
 */
public final class Tensor {
  /** Highest number of dimensions. */
  public static final int MAX_RANK = 16;

  private static final ValueLayout.OfDouble F64 =
      ValueLayout.JAVA_DOUBLE_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfLong I64 = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort I16 = ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private final Device device;
  private final MemorySegment memory; // begins at element [0, ..., 0], ends behind the last one; of the device
  private final DType dtype;
  private final long[] shape;
  private final long[] strides;
  private final long size;

  private Tensor(Device device, MemorySegment memory, DType dtype, long[] shape, long[] strides) {
    this.device = device;
    this.dtype = dtype;
    this.shape = shape;
    this.strides = strides;
    this.size = elementCount(shape);
    long bytes = spanBytes(dtype, shape, strides);
    if (bytes > memory.byteSize()) {
      throw new IllegalArgumentException(
          "tensor %s %s with strides %s needs %d bytes, the segment has %d"
              .formatted(dtype, Arrays.toString(shape), Arrays.toString(strides), bytes, memory.byteSize()));
    }
    this.memory = memory.asSlice(0, bytes);
  }

  /** A zeroed, contiguous tensor whose memory belongs to {@code arena}, aligned for SIMD (64 bytes). */
  public static Tensor allocate(Arena arena, DType dtype, long... shape) {
    long[] dims = checkShape(shape);
    long[] strides = contiguousStrides(dims);
    return new Tensor(Device.cpu(), arena.allocate(spanBytes(dtype, dims, strides), 64), dtype, dims, strides);
  }

  /**
   * A zeroed, contiguous tensor in the memory that {@code engine} computes on, which closing {@code arena} frees.
   *
   * @throws MambaException if there is no memory for it; the message names what was asked for and what is free, and all
   *     that exists stays usable
   */
  public static Tensor allocate(Arena arena, Engine engine, DType dtype, long... shape) {
    engine.checkOpen();
    if (!engine.device().isCuda()) {
      return OffHeap.allocate(arena, "tensor", dtype, shape);
    }
    long[] dims = checkShape(shape);
    long[] strides = contiguousStrides(dims);
    long bytes = spanBytes(dtype, dims, strides);
    return new Tensor(engine.device(), DeviceMemory.allocate(arena, engine, bytes), dtype, dims, strides);
  }

  /**
   * A contiguous view on GPU memory that other code owns, from its address: nothing is copied. It ends with {@code
   * arena}; the owner keeps the memory as long, and lets nothing write it while an operation runs.
   *
   * @throws IllegalArgumentException if {@code device} is not a GPU; host memory comes as a {@link MemorySegment}
   */
  public static Tensor ofAddress(Arena arena, Device device, long address, DType dtype, long... shape) {
    long[] dims = checkShape(shape);
    return ofAddress(arena, device, address, dtype, dims, contiguousStrides(dims));
  }

  /** As {@link #ofAddress(Arena, Device, long, DType, long...)}, with strides as {@link #ofStrided} has them. */
  public static Tensor ofAddressStrided(
      Arena arena, Device device, long address, DType dtype, long[] shape, long[] strides) {
    long[] dims = checkShape(shape);
    return ofAddress(arena, device, address, dtype, dims, checkStrides(dims, strides));
  }

  private static Tensor ofAddress(
      Arena arena, Device device, long address, DType dtype, long[] shape, long[] strides) {
    if (!device.isCuda()) {
      throw new IllegalArgumentException("device: a GPU expected, found " + device + "; use a MemorySegment instead");
    }
    long bytes = spanBytes(dtype, shape, strides);
    return new Tensor(device, DeviceMemory.view(arena, address, bytes), dtype, shape, strides);
  }

  /** A contiguous (row-major) view on the beginning of {@code segment}. */
  public static Tensor of(MemorySegment segment, DType dtype, long... shape) {
    long[] dims = checkShape(shape);
    return new Tensor(
        Device.cpu(), segment, Objects.requireNonNull(dtype, "dtype"), dims, contiguousStrides(dims));
  }

  /** A view on {@code segment} whose element [i, j, ...] lies at element i * strides[0] + j * strides[1] + .... */
  public static Tensor ofStrided(MemorySegment segment, DType dtype, long[] shape, long[] strides) {
    long[] dims = checkShape(shape);
    long[] steps = checkStrides(dims, strides);
    return new Tensor(Device.cpu(), segment, Objects.requireNonNull(dtype, "dtype"), dims, steps);
  }

  /** A contiguous view on a direct buffer's bytes from its position to its limit. */
  public static Tensor of(ByteBuffer buffer, DType dtype, long... shape) {
    if (!buffer.isDirect()) {
      throw new IllegalArgumentException("buffer: a direct ByteBuffer expected, found one on the heap");
    }
    return of(MemorySegment.ofBuffer(buffer), dtype, shape);
  }

  /** A new F32 tensor in {@code arena} holding {@code values} in row-major order. */
  public static Tensor copyOf(Arena arena, float[] values, long... shape) {
    Tensor tensor = allocate(arena, DType.F32, shape);
    if (tensor.size != values.length) {
      throw new IllegalArgumentException(
          "values: shape %s has %d elements, found %d".formatted(Arrays.toString(shape), tensor.size, values.length));
    }
    MemorySegment.copy(values, 0, tensor.memory, F32, 0, values.length);
    return tensor;
  }

  /** The element type. */
  public DType dtype() {
    return dtype;
  }

  /** A copy of the dimensions. */
  public long[] shape() {
    return shape.clone();
  }

  /** A copy of the strides, in elements. */
  public long[] strides() {
    return strides.clone();
  }

  /** Number of dimensions. */
  public int rank() {
    return shape.length;
  }

  /** Length of dimension {@code dim}. */
  public long dim(int dim) {
    return shape[Objects.checkIndex(dim, shape.length)];
  }

  /** Number of elements. */
  public long size() {
    return size;
  }

  /** Where the memory is. */
  public Device device() {
    return device;
  }

  /**
   * The memory from the first to the last element; not a copy.
   *
   * @throws UnsupportedOperationException if it is a GPU's, which Java cannot access
   */
  public MemorySegment segment() {
    if (device.isCuda()) {
      throw new UnsupportedOperationException(
          "%s: its elements are in memory of %s, where Java cannot access them; copy it with toHost"
              .formatted(this, device));
    }
    return memory;
  }

  /**
   * The first element as a pointer for native code: a segment of length zero at its address, host's or GPU's, with the
   * lifetime of the memory.
   */
  public MemorySegment pointer() {
    return memory.asSlice(0, 0);
  }

  /** Whether elements follow each other in row-major order without gaps. */
  public boolean isContiguous() {
    return size == 0 || isContiguous(shape, strides);
  }

  private static boolean isContiguous(long[] shape, long[] strides) {
    long expected = 1;
    for (int d = shape.length - 1; d >= 0; d--) {
      if (shape[d] > 1 && strides[d] != expected) {
        return false;
      }
      expected *= shape[d];
    }
    return true;
  }

  /**
   * Whether the memory is off-heap and begins at a multiple of {@link DType#alignment()}, as native code needs it.
   */
  public boolean isAligned() {
    return memory.isNative() && memory.address() % dtype.alignment() == 0;
  }

  /**
   * Element [index...] as a float: narrowed from F64, rounded from wide integers, dequantised from blocks, exact
   * otherwise.
   */
  public float getFloat(long... index) {
    return floatAt(element(index));
  }

  /** Element [i] of a tensor of rank 1; allocates nothing. */
  public float getFloat(long i) {
    return floatAt(element(i));
  }

  /** Element [index...] of an integer or boolean tensor. */
  public long getLong(long... index) {
    return longAt(element(index));
  }

  /** Sets element [index...] of a floating-point tensor, rounding to nearest even. */
  public void setFloat(float value, long... index) {
    setFloatAt(element(index), value);
  }

  /** Copies all elements, in row-major order, as {@link #getFloat(long...)} gives them. */
  public float[] toFloatArray() {
    float[] values = new float[arrayLength()];
    copyTo(values);
    return values;
  }

  /**
   * Copies all elements into {@code target}, which has exactly {@link #size()} entries, as floats in row-major order.
   */
  public void copyTo(float[] target) {
    if (target.length != size) {
      throw new IllegalArgumentException("target: %d entries expected, found %d".formatted(size, target.length));
    }
    if (dtype == DType.F32 && isContiguous()) {
      MemorySegment.copy(segment(), F32, 0, target, 0, target.length);
      return;
    }
    int i = 0;
    for (var it = new Elements(this); it.hasNext(); i++) {
      target[i] = floatAt(it.next());
    }
  }

  /** Copies all elements of an integer or boolean tensor, in row-major order. */
  public long[] toLongArray() {
    long[] values = new long[arrayLength()];
    int i = 0;
    for (var it = new Elements(this); it.hasNext(); i++) {
      values[i] = longAt(it.next());
    }
    return values;
  }

  /**
   * Copies the elements of {@code source}, which has the same shape. The same element type is copied bit by bit; other
   * types are converted through float, and this tensor must then be a floating-point one. For GPU memory there is
   * {@link Ops#copy}.
   */
  public void copyFrom(Tensor source) {
    if (!Arrays.equals(shape, source.shape)) {
      throw new IllegalArgumentException(
          "source: shape %s expected, found %s".formatted(Arrays.toString(shape), Arrays.toString(source.shape)));
    }
    if (dtype == source.dtype && isContiguous() && source.isContiguous()) {
      segment().copyFrom(source.segment());
      return;
    }
    int width = dtype.blockBytes(); // blocks are contiguous, so they do not come here without a conversion
    var from = new Elements(source);
    for (var to = new Elements(this); to.hasNext(); ) {
      if (dtype == source.dtype) {
        MemorySegment.copy(source.segment(), from.next() * width, segment(), to.next() * width, width);
      } else {
        setFloatAt(to.next(), source.floatAt(from.next()));
      }
    }
  }

  /** A copy of this tensor in {@code arena}: contiguous and aligned, with the same element type. */
  public Tensor copyTo(Arena arena) {
    Tensor copy = allocate(arena, dtype, shape);
    copy.copyFrom(this);
    return copy;
  }

  /** A contiguous copy in the memory that {@code engine} computes on, which closing {@code arena} frees. */
  public Tensor toDevice(Engine engine, Arena arena) {
    return Ops.copy(engine, this, allocate(arena, engine, dtype, shape));
  }

  /** A contiguous copy in host memory; {@code engine} is on this tensor's device. */
  public Tensor toHost(Engine engine, Arena arena) {
    return Ops.copy(engine, this, OffHeap.allocate(arena, "tensor", dtype, shape));
  }

  /**
   * A contiguous copy in {@code arena} of this contiguous F32, F16 or BF16 tensor as another of these types, rounded to
   * nearest, ties to even.
   *
   * @throws IllegalArgumentException if a finite element is too large for {@code newType}, or for other types
   */
  public Tensor convertTo(Arena arena, DType newType) {
    for (DType type : new DType[] {dtype, newType}) {
      if (type != DType.F32 && type != DType.F16 && type != DType.BF16) {
        throw new IllegalArgumentException("F32, F16 or BF16 expected, found " + type);
      }
    }
    if (!isContiguous()) {
      throw new IllegalArgumentException("a contiguous tensor expected, found " + this);
    }
    Tensor copy = allocate(arena, newType, shape);
    FloatConversion.convert(toString(), this, copy);
    return copy;
  }

  /** The view with dimension {@code dim} fixed at {@code index}, one dimension fewer. */
  public Tensor select(int dim, long index) {
    Objects.checkIndex(dim, shape.length);
    Objects.checkIndex(index, shape[dim]);
    return new Tensor(device, from(index * strides[dim]), dtype, without(shape, dim), without(strides, dim));
  }

  /** The view of indices {@code from} (inclusive) to {@code to} (exclusive) of dimension {@code dim}. */
  public Tensor slice(int dim, long from, long to) {
    Objects.checkIndex(dim, shape.length);
    Objects.checkFromToIndex(from, to, shape[dim]);
    long[] dims = shape.clone();
    dims[dim] = to - from;
    return new Tensor(device, from(from == to ? 0 : from * strides[dim]), dtype, dims, strides);
  }

  /** The view with dimensions {@code a} and {@code b} exchanged. */
  public Tensor transpose(int a, int b) {
    Objects.checkIndex(a, shape.length);
    Objects.checkIndex(b, shape.length);
    return new Tensor(device, memory, dtype, swapped(shape, a, b), swapped(strides, a, b));
  }

  /** The view with another shape of the same size; this tensor must be contiguous. */
  public Tensor reshape(long... newShape) {
    long[] dims = checkShape(newShape);
    if (elementCount(dims) != size) {
      throw new IllegalArgumentException(
          "shape %s has another number of elements than %s".formatted(Arrays.toString(dims), Arrays.toString(shape)));
    }
    if (!isContiguous()) {
      throw new IllegalStateException(
          "reshape needs a contiguous tensor, found strides %s for shape %s"
              .formatted(Arrays.toString(strides), Arrays.toString(shape)));
    }
    return new Tensor(device, memory, dtype, dims, contiguousStrides(dims));
  }

  @Override
  public String toString() {
    return "Tensor["
        + dtype
        + " "
        + Arrays.toString(shape)
        + (isContiguous() ? "" : " strided")
        + (device.isCuda() ? " on " + device : "")
        + "]";
  }

  private MemorySegment from(long element) {
    return size == 0 ? memory : memory.asSlice(dtype.bytesFor(element));
  }

  private long element(long[] index) {
    if (index.length != shape.length) {
      throw new IndexOutOfBoundsException(
          "index %s has %d entries, shape %s has %d"
              .formatted(Arrays.toString(index), index.length, Arrays.toString(shape), shape.length));
    }
    long element = 0;
    for (int d = 0; d < index.length; d++) {
      if (index[d] < 0 || index[d] >= shape[d]) {
        throw new IndexOutOfBoundsException(
            "index %s is outside of shape %s".formatted(Arrays.toString(index), Arrays.toString(shape)));
      }
      element += index[d] * strides[d];
    }
    return element;
  }

  private long element(long i) {
    if (shape.length != 1 || i < 0 || i >= shape[0]) {
      throw new IndexOutOfBoundsException("index [%d] is outside of shape %s".formatted(i, Arrays.toString(shape)));
    }
    return i * strides[0];
  }

  private float floatAt(long element) {
    if (dtype.isBlock()) {
      return dequantised(element);
    }
    long offset = element * dtype.blockBytes();
    return switch (dtype) {
      case F64 -> (float) segment().get(F64, offset);
      case F32 -> segment().get(F32, offset);
      case F16 -> Float.float16ToFloat(segment().get(I16, offset));
      case BF16 -> Float.intBitsToFloat(segment().get(I16, offset) << 16);
      case I64, I32, I16, I8, U8, BOOL -> longAt(element);
      case Q8_0, Q4_0 -> throw new AssertionError(dtype);
    };
  }

  private float dequantised(long element) {
    long block = element / dtype.blockSize() * dtype.blockBytes();
    int i = (int) (element % dtype.blockSize());
    float scale = Float.float16ToFloat(segment().get(I16, block));
    long quants = block + Short.BYTES;
    if (dtype == DType.Q8_0) {
      return scale * segment().get(ValueLayout.JAVA_BYTE, quants + i);
    }
    int pair = segment().get(ValueLayout.JAVA_BYTE, quants + i % 16);
    return scale * ((i < 16 ? pair & 15 : pair >> 4 & 15) - 8);
  }

  private long longAt(long element) {
    long offset = element * dtype.blockBytes();
    return switch (dtype) {
      case I64 -> segment().get(I64, offset);
      case I32 -> segment().get(I32, offset);
      case I16 -> segment().get(I16, offset);
      case I8 -> segment().get(ValueLayout.JAVA_BYTE, offset);
      case U8 -> Byte.toUnsignedLong(segment().get(ValueLayout.JAVA_BYTE, offset));
      case BOOL -> segment().get(ValueLayout.JAVA_BYTE, offset) == 0 ? 0 : 1;
      case F64, F32, F16, BF16, Q8_0, Q4_0 -> throw new IllegalArgumentException(
          "an integer tensor expected, found " + dtype + " " + Arrays.toString(shape));
    };
  }

  private void setFloatAt(long element, float value) {
    long offset = element * dtype.blockBytes();
    switch (dtype) {
      case F64 -> segment().set(F64, offset, value);
      case F32 -> segment().set(F32, offset, value);
      case F16 -> segment().set(I16, offset, Float.floatToFloat16(value));
      case BF16 -> segment().set(I16, offset, FloatConversion.toBfloat16(value));
      case I64, I32, I16, I8, U8, BOOL, Q8_0, Q4_0 -> throw new IllegalArgumentException(
          "a tensor of floating-point elements expected, found " + dtype + " " + Arrays.toString(shape));
    }
  }

  private int arrayLength() {
    if (size > Integer.MAX_VALUE - 8) {
      throw new IllegalArgumentException(size + " elements do not fit into a Java array");
    }
    return (int) size;
  }

  private static long[] checkShape(long[] shape) {
    if (shape.length > MAX_RANK) {
      throw new IllegalArgumentException("shape has %d dimensions, at most %d".formatted(shape.length, MAX_RANK));
    }
    for (long dim : shape) {
      if (dim < 0) {
        throw new IllegalArgumentException("shape %s: must not be negative".formatted(Arrays.toString(shape)));
      }
    }
    return shape.clone();
  }

  private static long[] checkStrides(long[] shape, long[] strides) {
    if (strides.length != shape.length) {
      throw new IllegalArgumentException(
          "strides %s do not fit shape %s: as many entries expected"
              .formatted(Arrays.toString(strides), Arrays.toString(shape)));
    }
    for (long stride : strides) {
      if (stride < 0) {
        throw new IllegalArgumentException("strides %s: must not be negative".formatted(Arrays.toString(strides)));
      }
    }
    return strides.clone();
  }

  private static long elementCount(long[] shape) {
    long count = 1;
    for (long dim : shape) {
      if (dim == 0) {
        return 0;
      }
      count = multiply(count, dim, shape);
    }
    return count;
  }

  /** Bytes from the first to behind the last element; every offset inside is then free of overflow. */
  private static long spanBytes(DType dtype, long[] shape, long[] strides) {
    if (dtype.isBlock()) {
      checkBlocks(dtype, shape, strides);
    }
    long last = 0;
    for (int d = 0; d < shape.length; d++) {
      if (shape[d] == 0) {
        return 0;
      }
      long step = multiply(shape[d] - 1, strides[d], shape);
      if (step > Long.MAX_VALUE - 1 - last) {
        throw tooLarge(shape);
      }
      last += step;
    }
    return multiply((last + 1) / dtype.blockSize(), dtype.blockBytes(), shape);
  }

  private static void checkBlocks(DType dtype, long[] shape, long[] strides) {
    if (shape.length == 0 || shape[shape.length - 1] % dtype.blockSize() != 0) {
      throw new IllegalArgumentException(
          "%s: rows of a multiple of %d elements expected, found shape %s"
              .formatted(dtype, dtype.blockSize(), Arrays.toString(shape)));
    }
    if (elementCount(shape) > 0 && !isContiguous(shape, strides)) {
      throw new IllegalArgumentException(
          "%s: contiguous rows expected, found strides %s for shape %s"
              .formatted(dtype, Arrays.toString(strides), Arrays.toString(shape)));
    }
  }

  private static long[] contiguousStrides(long[] shape) {
    long[] strides = new long[shape.length];
    if (elementCount(shape) == 0) {
      return strides;
    }
    long stride = 1;
    for (int d = shape.length - 1; d >= 0; d--) {
      strides[d] = stride;
      stride *= shape[d];
    }
    return strides;
  }

  private static long multiply(long a, long b, long[] shape) {
    if (Math.multiplyHigh(a, b) != 0 || a * b < 0) {
      throw tooLarge(shape);
    }
    return a * b;
  }

  private static IllegalArgumentException tooLarge(long[] shape) {
    return new IllegalArgumentException("shape %s is too large for 64-bit offsets".formatted(Arrays.toString(shape)));
  }

  private static long[] without(long[] values, int dim) {
    long[] rest = new long[values.length - 1];
    System.arraycopy(values, 0, rest, 0, dim);
    System.arraycopy(values, dim + 1, rest, dim, rest.length - dim);
    return rest;
  }

  private static long[] swapped(long[] values, int a, int b) {
    long[] copy = values.clone();
    copy[a] = values[b];
    copy[b] = values[a];
    return copy;
  }

  /** A tensor's elements in row-major order, by their place in its memory. */
  private static final class Elements {
    private final Tensor tensor;
    private final long[] index;
    private long left;
    private long element;

    Elements(Tensor tensor) {
      this.tensor = tensor;
      this.index = new long[tensor.shape.length];
      this.left = tensor.size;
    }

    boolean hasNext() {
      return left > 0;
    }

    long next() {
      long here = element;
      left--;
      for (int d = index.length - 1; d >= 0; d--) {
        element += tensor.strides[d];
        if (++index[d] < tensor.shape[d]) {
          break;
        }
        element -= index[d] * tensor.strides[d];
        index[d] = 0;
      }
      return here;
    }
  }
}
