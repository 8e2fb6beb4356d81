package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.mismatch;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.SequencedMap;
import java.util.Set;
import java.util.concurrent.atomic.AtomicBoolean;
import org.mamba4j.Tensor;
import org.mamba4j.checkpoint.Unpickler.StoredTensor;
import org.mamba4j.internal.Reclaimer;

/**
 * A {@code pytorch_model.bin} as {@code torch.save} of PyTorch 1.6 and later writes it: a zip file whose
 * {@code data.pkl} describes tensors over the bytes of the entries {@code data/0}, {@code data/1}, .... The pickle is
 * read by a machine that knows tensors and plain containers and executes nothing.
 *
 * <p>The file is memory-mapped. Contiguous tensors are read-only views on the mapping; others are copied when it is
 * opened. Tensors are valid until {@link #close()}. Safe for use by threads.
 */
public final class TorchFile implements TensorFile {
  // The pickle of an integer that the format of PyTorch before 1.6 begins with.
  private static final byte[] LEGACY = {(byte) 0x80, 2, (byte) 0x8a, 10, 0x6c, (byte) 0xfc, (byte) 0x9c, 0x46};
  private static final String PICKLE = "/data.pkl";

  private final Path path;
  private final Arena arena;
  private final SequencedMap<String, Tensor> tensors;
  private final AtomicBoolean closed = new AtomicBoolean();

  private TorchFile(Path path, Arena arena, SequencedMap<String, Tensor> tensors) {
    this.path = path;
    this.arena = arena;
    this.tensors = tensors;
  }

  /**
   * Maps and checks a file.
   *
   * @throws CheckpointException if it cannot be read, is damaged, or holds anything but tensors by name
   */
  public static TorchFile open(Path path) throws IOException {
    return InputFiles.open(path, TorchFile::read);
  }

  /** Checks the file whose bytes are {@code file}; {@code arena} goes with the result and holds what is copied. */
  static TorchFile read(Path path, MemorySegment file, Arena arena) throws CheckpointException {
    if (file.byteSize() >= LEGACY.length
        && file.asSlice(0, LEGACY.length).mismatch(MemorySegment.ofArray(LEGACY)) == -1) {
      throw in(
          path,
          "expected the zip format of PyTorch 1.6 or later, found the legacy format;"
              + " load and save it again with a current PyTorch, or convert it to safetensors");
    }
    var entries = ZipEntries.read(path, file);
    String prefix = prefix(path, entries);
    checkByteOrder(path, entries.get(prefix + "/byteorder"));
    var stored = Unpickler.stateDict(path, pickle(path, entries.get(prefix + PICKLE)));

    var tensors = new LinkedHashMap<String, Tensor>();
    long copyable = file.byteSize(); // a transposed tensor is as large as its storage; anything beyond is an attack
    for (var entry : stored.entrySet()) {
      Tensor view = view(path, entry.getKey(), entry.getValue(), prefix, entries);
      if (!view.isContiguous()) {
        copyable -= view.size() * view.dtype().byteSize();
        if (copyable < 0) {
          throw CheckpointException.tensor(
              path, entry.getKey(), "strided tensors no larger than the file in all", "more than " + file.byteSize());
        }
        view = view.copyTo(arena);
      }
      tensors.put(entry.getKey(), view.reshape(view.shape()));
    }
    return new TorchFile(path, arena, tensors);
  }

  private static String prefix(Path path, Map<String, MemorySegment> entries) throws CheckpointException {
    var prefixes =
        entries.keySet().stream()
            .filter(name -> name.indexOf('/') >= 0 && name.indexOf('/') == name.length() - PICKLE.length())
            .filter(name -> name.endsWith(PICKLE))
            .map(name -> name.substring(0, name.length() - PICKLE.length()))
            .toList();
    if (prefixes.size() != 1) {
      throw mismatch(path, "zip entries FOLDER/data.pkl", "one, as torch.save writes it", prefixes.size());
    }
    return prefixes.getFirst();
  }

  private static void checkByteOrder(Path path, MemorySegment entry) throws CheckpointException {
    if (entry == null) {
      return; // PyTorch before 2.1 did not write it
    }
    byte[] bytes = entry.asSlice(0, Math.min(16, entry.byteSize())).toArray(ValueLayout.JAVA_BYTE);
    String order = new String(bytes, StandardCharsets.US_ASCII);
    if (!order.equals("little")) {
      throw mismatch(path, "byteorder", "little", quote(order));
    }
  }

  private static byte[] pickle(Path path, MemorySegment entry) throws CheckpointException {
    if (entry.byteSize() > Unpickler.MAX_BYTES) {
      throw mismatch(path, "data.pkl", "at most " + Unpickler.MAX_BYTES + " bytes", entry.byteSize());
    }
    return entry.toArray(ValueLayout.JAVA_BYTE);
  }

  private static Tensor view(
      Path path, String name, StoredTensor stored, String prefix, Map<String, MemorySegment> entries)
      throws CheckpointException {
    var storage = stored.storage();
    MemorySegment bytes = entries.get(prefix + "/data/" + storage.key());
    if (bytes == null) {
      throw CheckpointException.tensor(path, name, "an entry data/" + storage.key(), "none");
    }
    int width = storage.dtype().byteSize();
    if (bytes.byteSize() / width != storage.size() || bytes.byteSize() % width != 0) {
      throw CheckpointException.tensor(
          path, name, storage.size() + " " + storage.dtype() + " elements in its storage", bytes.byteSize() + " bytes");
    }
    if (stored.offset() > storage.size()) {
      throw CheckpointException.tensor(
          path, name, "an offset within its storage of " + storage.size(), "offset " + stored.offset());
    }
    try {
      var from = bytes.asSlice(stored.offset() * width).asReadOnly();
      Tensor view = Tensor.ofStrided(from, storage.dtype(), stored.shape(), stored.strides());
      if (view.size() > storage.size()) {
        throw CheckpointException.tensor(
            path, name, "at most the " + storage.size() + " elements of its storage", view.size() + " by repetition");
      }
      return view;
    } catch (IllegalArgumentException e) {
      throw CheckpointException.tensor(path, name, "a shape within its storage", e.getMessage());
    }
  }

  @Override
  public Path path() {
    return path;
  }

  /** Names of the tensors in the order of the pickle. */
  @Override
  public Set<String> names() {
    return Collections.unmodifiableSet(tensors.sequencedKeySet());
  }

  /**
   * A tensor, contiguous.
   *
   * @throws CheckpointException if there is none of this name
   */
  @Override
  public Tensor tensor(String name) throws CheckpointException {
    Tensor tensor = tensors.get(name);
    if (tensor == null) {
      throw CheckpointException.tensor(path, name, "to be in the file", "no tensor of this name");
    }
    return tensor;
  }

  /** Unmaps the file. Its tensors throw {@link IllegalStateException} from then on. */
  @Override
  public void close() {
    if (closed.compareAndSet(false, true)) {
      Reclaimer.close(arena);
    }
  }
}
