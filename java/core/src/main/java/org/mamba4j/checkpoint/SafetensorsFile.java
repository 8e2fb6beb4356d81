package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.Collections;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.atomic.AtomicBoolean;
import org.mamba4j.Tensor;
import org.mamba4j.internal.Reclaimer;

/**
 * A memory-mapped safetensors file. The whole header is checked when it is opened: every tensor lies inside of the
 * file, its bytes fit its type and shape, and the tensors cover the data without overlaps or holes.
 *
 * <p>Tensors are read-only views on the mapping and valid until {@link #close()}; a file written by others may place
 * them at addresses that are not a multiple of their element size ({@link Tensor#isAligned()}). Whoever shortens the
 * file while it is mapped takes the data away under its readers: replace such files, do not rewrite them. Safe for use
 * by threads.
 */
public final class SafetensorsFile implements TensorFile {
  private static final ValueLayout.OfLong U64 = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final int PREFIX = 8; // bytes of the header's length

  private final Path path;
  private final Arena arena;
  private final MemorySegment data;
  private final SafetensorsHeader header;
  private final AtomicBoolean closed = new AtomicBoolean();

  private SafetensorsFile(Path path, Arena arena, MemorySegment data, SafetensorsHeader header) {
    this.path = path;
    this.arena = arena;
    this.data = data;
    this.header = header;
  }

  /**
   * Maps and checks a file.
   *
   * @throws CheckpointException if it cannot be read or is not a valid safetensors file
   */
  public static SafetensorsFile open(Path path) throws IOException {
    return InputFiles.open(path, SafetensorsFile::read);
  }

  /** Checks the file whose bytes are {@code file}; {@code arena} goes with the result. */
  static SafetensorsFile read(Path path, MemorySegment file, Arena arena) throws IOException {
    long size = file.byteSize();
    if (size < PREFIX) {
      throw in(path, "expected a safetensors file of at least 8 bytes, found " + size + " bytes");
    }
    long length = file.get(U64, 0);
    if (length < 0 || length > Json.MAX_BYTES) {
      throw in(
          path, "expected a header of at most " + Json.MAX_BYTES + " bytes, found " + Long.toUnsignedString(length));
    }
    if (length > size - PREFIX) {
      throw in(path, "expected a header of " + length + " bytes, found a file that ends after " + (size - PREFIX));
    }
    byte[] json = file.asSlice(PREFIX, length).toArray(ValueLayout.JAVA_BYTE);
    MemorySegment data = file.asSlice(PREFIX + length);
    return new SafetensorsFile(path, arena, data, SafetensorsHeader.parse(path, json, data.byteSize()));
  }

  @Override
  public Path path() {
    return path;
  }

  /** Names of the tensors in the order of the header. */
  @Override
  public Set<String> names() {
    return Collections.unmodifiableSet(header.entries().sequencedKeySet());
  }

  /** The strings of {@code __metadata__}; empty when the file has none. */
  public Map<String, String> metadata() {
    return Collections.unmodifiableMap(header.metadata());
  }

  /**
   * A read-only view on a tensor.
   *
   * @throws CheckpointException if there is none of this name
   */
  @Override
  public Tensor tensor(String name) throws CheckpointException {
    var entry = header.entries().get(name);
    if (entry == null) {
      throw CheckpointException.tensor(path, name, "to be in the file", "no tensor of this name");
    }
    var bytes = data.asSlice(entry.begin(), entry.end() - entry.begin()).asReadOnly();
    return Tensor.of(bytes, entry.dtype(), entry.shape());
  }

  /** Unmaps the file. Its tensors throw {@link IllegalStateException} from then on. */
  @Override
  public void close() {
    if (closed.compareAndSet(false, true)) {
      Reclaimer.close(arena);
    }
  }
}
