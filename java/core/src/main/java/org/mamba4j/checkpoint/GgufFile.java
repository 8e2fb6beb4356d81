package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.mismatch;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.atomic.AtomicBoolean;
import org.mamba4j.DType;
import org.mamba4j.Tensor;
import org.mamba4j.internal.Reclaimer;

/**
 * A memory-mapped GGUF file, version 2 or 3, little-endian. Metadata and the places of all tensors are checked when it
 * is opened: every tensor lies inside of the file, at a multiple of the file's alignment, and none overlaps another.
 *
 * <p>Tensors are read-only views on the mapping, valid until {@link #close()}, under the names of llama.cpp and with
 * their dimensions in row-major order, the reverse of the file's. F32, F16, BF16, Q8_0 and Q4_0 are read; a file with
 * tensors of other types is refused. Whoever shortens the file while it is mapped takes the data away under its
 * readers. Safe for use by threads.
 */
public final class GgufFile implements AutoCloseable {
  static final int MAGIC = 'G' | 'G' << 8 | 'U' << 16 | 'F' << 24;
  private static final int MAX_ENTRIES = 1 << 20;
  private static final int MAX_NAME = 256; // bytes; llama.cpp itself stops at 64
  private static final int MAX_DIMS = 4;
  static final int DEFAULT_ALIGNMENT = 32;
  private static final int MAX_ALIGNMENT = 1 << 16;

  private static final Map<Long, DType> DTYPES =
      Map.of(0L, DType.F32, 1L, DType.F16, 2L, DType.Q4_0, 8L, DType.Q8_0, 30L, DType.BF16);

  /** What GGML calls its types, by code; some were given up again. */
  private static final String[] TYPE_NAMES = {
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32",
    "I64", "F64", "IQ1_M", "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8",
    "IQ4_NL_8_8", "MXFP4", "NVFP4", "Q1_0"
  };

  /** {@code shape} in row-major order, {@code begin} from the beginning of the data. */
  private record Entry(DType dtype, long[] shape, long begin, long bytes) {}

  private final Path path;
  private final Arena arena;
  private final MemorySegment data;
  private final GgufMetadata metadata;
  private final LinkedHashMap<String, Entry> entries;
  private final AtomicBoolean closed = new AtomicBoolean();

  private GgufFile(
      Path path, Arena arena, MemorySegment data, GgufMetadata metadata, LinkedHashMap<String, Entry> entries) {
    this.path = path;
    this.arena = arena;
    this.data = data;
    this.metadata = metadata;
    this.entries = entries;
  }

  /** The number that files have for {@code dtype}. */
  static int typeCode(DType dtype) {
    return DTYPES.entrySet().stream().filter(e -> e.getValue() == dtype).findFirst().orElseThrow().getKey().intValue();
  }

  /**
   * The GGUF file that {@code model} names: itself if it is a file, or the only one in a folder that holds the files of
   * no other layout.
   *
   * @throws CheckpointException if there are several
   */
  public static Optional<Path> find(Path model) throws IOException {
    if (Files.isRegularFile(model)) {
      return Optional.of(model);
    }
    if (!Files.isDirectory(model) || TensorIndex.isPresent(model)) {
      return Optional.empty();
    }
    try (var files = Files.list(model)) {
      var found = files.filter(file -> file.getFileName().toString().endsWith(".gguf")).sorted().limit(2).toList();
      if (found.size() > 1) {
        throw in(
            model,
            "expected one GGUF file, found several, such as %s and %s; name the file to open"
                .formatted(quote(found.get(0).getFileName().toString()), quote(found.get(1).getFileName().toString())));
      }
      return found.stream().findFirst();
    }
  }

  /**
   * Maps and checks a file.
   *
   * @throws CheckpointException if it cannot be read, is not a valid GGUF file, is one of several parts, or has tensors
   *     of types that are not supported
   */
  public static GgufFile open(Path path) throws IOException {
    return InputFiles.open(path, GgufFile::read);
  }

  /** Checks the file whose bytes are {@code file}; {@code arena} goes with the result. */
  static GgufFile read(Path path, MemorySegment file, Arena arena) throws CheckpointException {
    var reader = new GgufReader(path, file, 0);
    checkVersion(reader);
    long tensors = reader.natural("number of tensors", 0, MAX_ENTRIES);
    long pairs = reader.natural("number of metadata pairs", 0, MAX_ENTRIES);
    GgufMetadata metadata = GgufMetadata.read(reader, pairs);
    refuseSplit(path, metadata);
    long alignment = alignment(metadata);
    var entries = new LinkedHashMap<String, Entry>();
    for (long i = 0; i < tensors; i++) {
      String name = reader.text("name of tensor " + i, MAX_NAME);
      if (entries.put(name, entry(reader, name, alignment)) != null) {
        throw CheckpointException.tensor(path, name, "once", "it twice");
      }
    }
    long begin = Math.min(Math.ceilDiv(reader.position(), alignment) * alignment, file.byteSize());
    checkPlaces(path, entries, file.byteSize() - begin);
    return new GgufFile(path, arena, file.asSlice(begin).asReadOnly(), metadata, entries);
  }

  private static void checkVersion(GgufReader reader) throws CheckpointException {
    int magic = reader.i32("magic");
    if (magic != MAGIC) {
      throw mismatch(reader.path(), "first four bytes", "GGUF", "0x%08x".formatted(Integer.reverseBytes(magic)));
    }
    int version = reader.i32("version");
    if (version != 2 && version != 3) {
      boolean swapped = (version & 0xffff) == 0 && version != 0;
      throw mismatch(
          reader.path(), "version", "2 or 3, little-endian", swapped ? "a big-endian file" : Integer.toString(version));
    }
  }

  private static void refuseSplit(Path path, GgufMetadata metadata) throws CheckpointException {
    long parts = metadata.integer("split.count").orElse(0);
    if (parts > 1) {
      throw in(
          path,
          "metadata 'split.count': expected a whole model, found one of %d parts; merge them with llama-gguf-split"
              .formatted(parts));
    }
  }

  private static long alignment(GgufMetadata metadata) throws CheckpointException {
    String key = "general.alignment";
    long alignment = metadata.integer(key).orElse(DEFAULT_ALIGNMENT);
    if (alignment < 1 || alignment > MAX_ALIGNMENT || Long.bitCount(alignment) != 1) {
      throw metadata.wrong(key, "a power of two up to " + MAX_ALIGNMENT, alignment);
    }
    return alignment;
  }

  private static Entry entry(GgufReader reader, String name, long alignment) throws CheckpointException {
    String what = "tensor " + quote(name);
    long rank = reader.u32(what);
    if (rank < 1 || rank > MAX_DIMS) {
      throw CheckpointException.tensor(reader.path(), name, "1 to " + MAX_DIMS + " dimensions", rank);
    }
    var shape = new long[(int) rank];
    for (int d = shape.length - 1; d >= 0; d--) {
      shape[d] = reader.natural("dimension of " + what, 1, Long.MAX_VALUE);
    }
    long code = reader.u32(what);
    DType dtype = DTYPES.get(code);
    if (dtype == null) {
      String type = code < TYPE_NAMES.length ? TYPE_NAMES[(int) code] : "the unknown type " + code;
      throw CheckpointException.tensor(reader.path(), name, "type F32, F16, BF16, Q8_0 or Q4_0", type);
    }
    if (shape[shape.length - 1] % dtype.blockSize() != 0) {
      throw CheckpointException.tensor(
          reader.path(), name, dtype + " rows of a multiple of " + dtype.blockSize(), Arrays.toString(shape));
    }
    long offset = reader.natural("offset of " + what, 0, Long.MAX_VALUE);
    if (offset % alignment != 0) {
      throw CheckpointException.tensor(reader.path(), name, "an offset of a multiple of " + alignment, offset);
    }
    try {
      long elements = Arrays.stream(shape).reduce(1, Math::multiplyExact);
      return new Entry(dtype, shape, offset, dtype.bytesFor(elements));
    } catch (ArithmeticException e) {
      throw CheckpointException.tensor(reader.path(), name, "a shape below 2^63 bytes", Arrays.toString(shape));
    }
  }

  private static void checkPlaces(Path path, Map<String, Entry> entries, long length) throws CheckpointException {
    var ordered = entries.entrySet().stream().sorted(Comparator.comparingLong(e -> e.getValue().begin)).toList();
    long end = 0;
    String before = null;
    for (var named : ordered) {
      Entry entry = named.getValue();
      if (entry.begin < end) {
        throw CheckpointException.tensor(
            path, named.getKey(), "bytes of its own", "offset %d inside of %s".formatted(entry.begin, quote(before)));
      }
      if (entry.bytes > length || entry.begin > length - entry.bytes) {
        throw CheckpointException.tensor(
            path,
            named.getKey(),
            "to lie within the file's " + length + " bytes of data",
            entry.bytes + " bytes at offset " + entry.begin);
      }
      end = entry.begin + entry.bytes;
      before = named.getKey();
    }
  }

  /** The file. */
  public Path path() {
    return path;
  }

  /** Names of the tensors in the order of the file. */
  public Set<String> names() {
    return Collections.unmodifiableSet(entries.sequencedKeySet());
  }

  /** The values that describe the model; to be asked for before {@link #close()}. */
  public GgufMetadata metadata() {
    return metadata;
  }

  /**
   * A read-only view on a tensor.
   *
   * @throws CheckpointException if there is none of this name
   */
  public Tensor tensor(String name) throws CheckpointException {
    Entry entry = entries.get(name);
    if (entry == null) {
      throw CheckpointException.tensor(path, name, "to be in the file", "no tensor of this name");
    }
    return Tensor.of(data.asSlice(entry.begin, entry.bytes), entry.dtype, entry.shape);
  }

  /** Unmaps the file. Its tensors throw {@link IllegalStateException} from then on. */
  @Override
  public void close() {
    if (closed.compareAndSet(false, true)) {
      Reclaimer.close(arena);
    }
  }
}
