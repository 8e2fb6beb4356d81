package org.mamba4j.checkpoint;

import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.mamba4j.DType;
import org.mamba4j.Family;
import org.mamba4j.Tensor;

/**
 * A GGUF file's tensors in the form that Hugging Face gives them. The matrices are views on the file; {@code ssm_a},
 * which holds A, becomes A_log in memory of its own.
 */
final class GgufWeights implements TensorFile {
  private static final Pattern BLOCK = Pattern.compile("blk\\.(\\d{1,9})\\.(.*)", Pattern.DOTALL);
  private static final Pattern LAYER = Pattern.compile("backbone\\.layers\\.(\\d{1,9})\\.(.*)", Pattern.DOTALL);
  private static final String A = "ssm_a";
  private static final String D = "ssm_d";
  private static final String CONV = "ssm_conv1d.weight";
  private static final String MIXER_NORM = "ssm_norm.weight";

  private static final Map<String, String> GLOBAL =
      Map.of(
          "token_embd.weight", WeightNames.EMBEDDING,
          "output_norm.weight", WeightNames.NORM_F,
          "output.weight", WeightNames.LM_HEAD);

  private final GgufFile file;
  private final boolean mamba2;
  private final Arena arena = Arena.ofShared();
  private final Map<String, String> inBlock; // GGUF to Hugging Face
  private final Map<String, String> fromBlock; // and back
  private final Map<String, Tensor> converted = new LinkedHashMap<>();

  /** Takes over the file, but not if it throws. */
  GgufWeights(GgufFile file, Family family) throws CheckpointException {
    this.file = file;
    this.mamba2 = family == Family.MAMBA2;
    this.inBlock =
        Map.ofEntries(
            Map.entry("attn_norm.weight", WeightNames.NORM),
            Map.entry("ssm_in.weight", WeightNames.IN_PROJ),
            Map.entry(CONV, WeightNames.CONV),
            Map.entry("ssm_conv1d.bias", WeightNames.CONV_BIAS),
            Map.entry("ssm_x.weight", WeightNames.X_PROJ),
            Map.entry("ssm_dt.weight", WeightNames.DT_PROJ),
            Map.entry("ssm_dt.bias", mamba2 ? WeightNames.DT_BIAS : WeightNames.DT_PROJ_BIAS),
            Map.entry(A, WeightNames.A_LOG),
            Map.entry(D, WeightNames.D),
            Map.entry(MIXER_NORM, WeightNames.MIXER_NORM),
            Map.entry("ssm_out.weight", WeightNames.OUT_PROJ));
    this.fromBlock = inBlock.entrySet().stream().collect(Collectors.toMap(Map.Entry::getValue, Map.Entry::getKey));
    try {
      for (String name : file.names()) {
        Tensor tensor = tensorInPlace(name);
        converted.put(name, inBlockIs(name, A) ? aLog(name, tensor) : tensor);
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
    var block = BLOCK.matcher(name);
    if (block.matches()) {
      String known = inBlock.get(block.group(2));
      return known == null ? name : "backbone.layers." + block.group(1) + "." + known;
    }
    return GLOBAL.getOrDefault(name, name);
  }

  @Override
  public String spelling(String canonical) {
    var layer = LAYER.matcher(canonical);
    if (layer.matches()) {
      String known = fromBlock.get(layer.group(2));
      return known == null ? canonical : "blk." + layer.group(1) + "." + known;
    }
    return GLOBAL.entrySet().stream()
        .filter(e -> e.getValue().equals(canonical))
        .map(Map.Entry::getKey)
        .findFirst()
        .orElse(canonical);
  }

  @Override
  public Tensor tensor(String name) {
    return converted.get(name);
  }

  private static boolean inBlockIs(String name, String suffix) {
    var block = BLOCK.matcher(name);
    return block.matches() && block.group(2).equals(suffix);
  }

  /** The view that has Hugging Face's shape. Dimensions of 1 that end a GGUF shape's list may be missing in it. */
  private Tensor tensorInPlace(String name) throws CheckpointException {
    Tensor tensor = file.tensor(name);
    if (inBlockIs(name, CONV)) {
      requirePlain(name, tensor);
      requireRank(name, tensor, 2, "[channels, d_conv]");
      return tensor.reshape(tensor.dim(0), 1, tensor.dim(1));
    }
    if (mamba2 && inBlockIs(name, MIXER_NORM)) {
      requireRank(name, tensor, 2, "[n_groups, d_inner / n_groups]");
      requirePlain(name, tensor);
      return tensor.reshape(tensor.size());
    }
    if (mamba2 && (inBlockIs(name, A) || inBlockIs(name, D))) {
      requirePlain(name, tensor);
      if (tensor.rank() > 2 || tensor.rank() == 2 && tensor.dim(1) != 1) {
        throw CheckpointException.tensor(path(), name, "shape [heads, 1]", Arrays.toString(tensor.shape()));
      }
      return tensor.reshape(tensor.size());
    }
    return tensor;
  }

  private void requireRank(String name, Tensor tensor, int rank, String shape) throws CheckpointException {
    boolean oneRow = rank == 2 && tensor.rank() == 1 && inBlockIs(name, MIXER_NORM);
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

  /** The float whose -exp is closest to {@code a}. */
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
