package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.GgufNames.inBlockIs;

import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.mamba4j.DType;
import org.mamba4j.Family;
import org.mamba4j.Tensor;

/**
 * A GGUF file's tensors in the form that Hugging Face gives them. The matrices are views on the file; {@code ssm_a},
 * which holds A, becomes A_log in memory of its own.
 */
final class GgufWeights implements TensorFile {
  private final GgufFile file;
  private final boolean mamba2;
  private final Arena arena = Arena.ofShared();
  private final GgufNames names;
  private final Map<String, Tensor> converted = new LinkedHashMap<>();

  /** Takes over the file, but not if it throws. */
  GgufWeights(GgufFile file, Family family) throws CheckpointException {
    this.file = file;
    this.mamba2 = family == Family.MAMBA2;
    this.names = new GgufNames(family);
    try {
      for (String name : file.names()) {
        Tensor tensor = tensorInPlace(name);
        converted.put(name, inBlockIs(name, GgufNames.A) ? aLog(name, tensor) : tensor);
      }
    } catch (Throwable e) {
      arena.close();
      throw e;
    }
  }

  @Override
  public Path path() {
    return file.path();
  }

  /** As the file spells them. */
  @Override
  public Set<String> names() {
    return file.names();
  }

  @Override
  public String canonical(String name) {
    return names.canonical(name);
  }

  @Override
  public String spelling(String canonical) {
    return names.spelling(canonical);
  }

  @Override
  public Tensor tensor(String name) {
    return converted.get(name);
  }

  /** The view that has Hugging Face's shape. Dimensions of 1 that end a GGUF shape's list may be missing in it. */
  private Tensor tensorInPlace(String name) throws CheckpointException {
    Tensor tensor = file.tensor(name);
    if (inBlockIs(name, GgufNames.CONV)) {
      requirePlain(name, tensor);
      requireRank(name, tensor, 2, "[channels, d_conv]");
      return tensor.reshape(tensor.dim(0), 1, tensor.dim(1));
    }
    if (mamba2 && inBlockIs(name, GgufNames.MIXER_NORM)) {
      requireRank(name, tensor, 2, "[n_groups, d_inner / n_groups]");
      requirePlain(name, tensor);
      return tensor.reshape(tensor.size());
    }
    if (mamba2 && (inBlockIs(name, GgufNames.A) || inBlockIs(name, GgufNames.D))) {
      requirePlain(name, tensor);
      if (tensor.rank() > 2 || tensor.rank() == 2 && tensor.dim(1) != 1) {
        throw CheckpointException.tensor(path(), name, "shape [heads, 1]", Arrays.toString(tensor.shape()));
      }
      return tensor.reshape(tensor.size());
    }
    return tensor;
  }

  private void requireRank(String name, Tensor tensor, int rank, String shape) throws CheckpointException {
    boolean oneRow = rank == 2 && tensor.rank() == 1 && inBlockIs(name, GgufNames.MIXER_NORM);
    if (tensor.rank() != rank && !oneRow) {
      throw CheckpointException.tensor(path(), name, "shape " + shape, Arrays.toString(tensor.shape()));
    }
  }

  private void requirePlain(String name, Tensor tensor) throws CheckpointException {
    if (tensor.dtype().isBlock()) {
      throw CheckpointException.tensor(path(), name, "F32, F16 or BF16", tensor.dtype());
    }
  }

  private Tensor aLog(String name, Tensor a) throws CheckpointException {
    requirePlain(name, a);
    Tensor aLog = Tensor.allocate(arena, DType.F32, a.shape());
    Tensor from = a.reshape(a.size());
    Tensor to = aLog.reshape(aLog.size());
    for (long i = 0; i < a.size(); i++) {
      float value = from.getFloat(i);
      if (!(value < 0) || Float.isInfinite(value)) {
        throw CheckpointException.tensor(path(), name, "A below 0 and finite", value + " at element " + i);
      }
      to.setFloat(aLog(value), i);
    }
    return aLog;
  }

  /** A of an A_log, as files hold it and the native library computes it. */
  static float a(float aLog) {
    return (float) -Math.exp(aLog);
  }

  /** The float whose -exp is closest to {@code a}: if {@code a} is {@link #a} of some float, so it is of this one. */
  static float aLog(float a) {
    float nearest = (float) Math.log(-(double) a);
    float best = nearest;
    for (float candidate : new float[] {Math.nextDown(nearest), Math.nextUp(nearest)}) {
      if (Math.abs(Math.exp(candidate) + a) < Math.abs(Math.exp(best) + a)) {
        best = candidate;
      }
    }
    return best;
  }

  @Override
  public void close() {
    arena.close();
    file.close();
  }
}
