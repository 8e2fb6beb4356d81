package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.SequencedMap;
import java.util.Set;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.mamba4j.DType;
import org.mamba4j.Family;
import org.mamba4j.ModelConfig;
import org.mamba4j.Tensor;
import org.mamba4j.checkpoint.WeightNames.Weight;
import org.mamba4j.internal.Reclaimer;

/**
 * A model folder, opened and checked: {@code config.json} in the layout of Hugging Face or of state-spaces, and the
 * tensors in {@code model.safetensors}, in shards with an index, or in {@code pytorch_model.bin}. Or a GGUF file of
 * architecture mamba or mamba2, whose matrices may be quantised as Q8_0 or Q4_0.
 *
 * <p>Dimensions come from the shapes of the tensors; a configuration that contradicts them, and missing, additional or
 * wrongly shaped tensors are errors. The tensors are memory-mapped views; only those that lie at an address that native
 * code cannot read are copied, and the {@code ssm_a} of a GGUF file is converted to A_log. All are
 * valid until {@link #close()}. Safe for use by threads.
 */
public final class Checkpoint implements AutoCloseable {
  private static final String CONFIG = "config.json";
  private static final Pattern LAYER = Pattern.compile("backbone\\.layers\\.(\\d{1,9})\\..*", Pattern.DOTALL);
  private static final Set<DType> DTYPES = EnumSet.of(DType.F32, DType.F16, DType.BF16);
  private static final int MAX_LISTED = 8;

  private final TensorIndex index;
  private final Arena arena;
  private final String sourceConfig;
  private final ModelConfig config;
  private final SequencedMap<String, Tensor> tensors;
  private final List<LayerWeights> layers;
  private final AtomicBoolean closed = new AtomicBoolean();

  /** Checks all and takes over index and arena. */
  Checkpoint(TensorIndex index, Arena arena, byte[] configJson, ConfigFile stated) throws IOException {
    this.index = index;
    this.arena = arena;
    this.sourceConfig = stated.original() ? null : new String(configJson, StandardCharsets.UTF_8);

    int layerCount = countLayers(index, stated);
    boolean projBias = stated.projBias().orElse(index.has(WeightNames.layer(0, WeightNames.IN_PROJ_BIAS)));
    boolean convBias = stated.convBias().orElse(index.has(WeightNames.layer(0, WeightNames.CONV_BIAS)));
    boolean head = index.has(WeightNames.LM_HEAD) || !stated.tiedHead().orElse(true);
    List<Weight> expected = WeightNames.model(stated.family(), layerCount, projBias, convBias, head);
    checkNames(index, stated, expected);
    boolean tied = !head || isTied(index, stated);
    this.config = Dimensions.derive(stated, index, layerCount, tied, projBias, convBias);

    this.tensors = new LinkedHashMap<>();
    for (Weight weight : expected) {
      if (!tied || !weight.name().equals(WeightNames.LM_HEAD)) {
        tensors.put(weight.name(), load(weight));
      }
    }
    var blocks = new ArrayList<LayerWeights>(layerCount);
    for (int i = 0; i < layerCount; i++) {
      blocks.add(layer(i));
    }
    this.layers = List.copyOf(blocks);
  }

  /**
   * Opens and checks a folder, or a GGUF file. A folder without the files of another layout may hold one GGUF file.
   *
   * @throws CheckpointException if a file is missing, unreadable or damaged, the model is of an unsupported kind, or
   *     tensors and configuration do not fit each other
   */
  public static Checkpoint open(Path folder) throws IOException {
    Optional<Path> gguf = GgufFile.find(folder);
    if (gguf.isPresent()) {
      return open(GgufFile.open(gguf.get()));
    }
    Path configPath = folder.resolve(CONFIG);
    byte[] json = InputFiles.read(configPath, ConfigFile.MAX_BYTES);
    ConfigFile stated = ConfigFile.parse(configPath, json);
    TensorIndex index = TensorIndex.open(folder);
    Arena arena = Arena.ofShared();
    try {
      return new Checkpoint(index, arena, json, stated);
    } catch (Throwable e) {
      arena.close();
      index.close();
      throw e;
    }
  }

  /** Takes over the file. */
  static Checkpoint open(GgufFile file) throws IOException {
    Arena arena = Arena.ofShared();
    GgufWeights weights = null;
    try {
      ConfigFile stated = GgufConfig.of(file);
      weights = new GgufWeights(file, stated.family());
      return new Checkpoint(new TensorIndex(file.path(), List.of(weights)), arena, null, stated);
    } catch (Throwable e) {
      arena.close();
      if (weights == null) {
        file.close();
      } else {
        weights.close();
      }
      throw e;
    }
  }

  /** Dimensions and constants of the model. */
  public ModelConfig config() {
    return config;
  }

  /** The files that hold the tensors. */
  public List<Path> files() {
    return index.files();
  }

  /** Names of the tensors as Hugging Face spells them, in the order of the forward pass. */
  public Set<String> tensorNames() {
    return Collections.unmodifiableSet(tensors.sequencedKeySet());
  }

  /** The token embedding [vocab_size, d_model]. */
  public Tensor embedding() {
    return tensors.get(WeightNames.EMBEDDING);
  }

  /** The weight of the final norm [d_model]. */
  public Tensor normF() {
    return tensors.get(WeightNames.NORM_F);
  }

  /** The output projection [vocab_size, d_model]; null when it is the embedding. */
  public Tensor lmHead() {
    return tensors.get(WeightNames.LM_HEAD);
  }

  /** The weights of the blocks, first to last. */
  public List<LayerWeights> layers() {
    return layers;
  }

  /**
   * All tensors under the names and with the shapes that Hugging Face uses; the convolution is [channels, 1, d_conv].
   */
  public SequencedMap<String, Tensor> hfTensors() {
    return Collections.unmodifiableSequencedMap(tensors);
  }

  /** A {@code config.json} for Hugging Face: the folder's own if it is one, else the equivalent of the original one. */
  public String hfConfigJson() {
    if (sourceConfig != null) {
      return sourceConfig;
    }
    return HuggingFaceConfig.write(config, embedding().dtype());
  }

  /** Unmaps all files. The tensors throw {@link IllegalStateException} from then on. */
  @Override
  public void close() {
    if (closed.compareAndSet(false, true)) {
      Reclaimer.close(arena);
      index.close();
    }
  }

  private static int countLayers(TensorIndex index, ConfigFile stated) throws CheckpointException {
    var found = new LinkedHashSet<String>();
    for (String name : index.names()) {
      var matcher = LAYER.matcher(name);
      if (matcher.matches()) {
        found.add(matcher.group(1));
      }
    }
    if (found.isEmpty()) {
      String first = index.spelling(WeightNames.layer(0, WeightNames.IN_PROJ));
      throw in(index.source(), "expected tensors of layers, such as %s, found none".formatted(quote(first)));
    }
    if (stated.layers().isPresent() && stated.layers().value() != found.size()) {
      throw in(
          stated.file(),
          "%s %d contradicts the tensors of %s: they belong to %d layers"
              .formatted(
                  stated.layers().key(), stated.layers().value(), index.source().getFileName(), found.size()));
    }
    return found.size();
  }

  private static void checkNames(TensorIndex index, ConfigFile stated, List<Weight> expected)
      throws CheckpointException {
    Set<String> wanted = expected.stream().map(Weight::name).collect(Collectors.toCollection(LinkedHashSet::new));
    var missing = wanted.stream().filter(name -> !index.has(name)).map(index::spelling).toList();
    var extra = index.names().stream().filter(name -> !wanted.contains(name)).map(index::spelling).toList();
    if (!missing.isEmpty() || !extra.isEmpty()) {
      var problems = new ArrayList<String>();
      if (!missing.isEmpty()) {
        problems.add(count(missing) + " missing: " + list(missing));
      }
      if (!extra.isEmpty()) {
        problems.add(count(extra) + " not expected: " + list(extra));
      }
      throw in(
          index.source(),
          "expected the %d tensors of a %s model with %s, found %d; %s"
              .formatted(
                  wanted.size(), stated.family(), stated.file().getFileName(), index.names().size(),
                  String.join("; ", problems)));
    }
  }

  private static String count(Collection<String> names) {
    return names.size() == 1 ? "1 tensor" : names.size() + " tensors";
  }

  private static String list(List<String> names) {
    String first = names.stream().limit(MAX_LISTED).map(CheckpointException::quote).collect(Collectors.joining(", "));
    return names.size() > MAX_LISTED ? first + ", ..." : first;
  }

  /** A head that repeats the embedding bit by bit is tied, whether the configuration says so or nothing. */
  private static boolean isTied(TensorIndex index, ConfigFile stated) throws CheckpointException {
    if (!stated.tiedHead().orElse(true)) {
      return false;
    }
    Tensor head = index.tensor(WeightNames.LM_HEAD);
    Tensor embedding = index.tensor(WeightNames.EMBEDDING);
    boolean same =
        head.dtype() == embedding.dtype()
            && Arrays.equals(head.shape(), embedding.shape())
            && (head.segment().equals(embedding.segment()) || head.segment().mismatch(embedding.segment()) == -1);
    if (!same && stated.tiedHead().isPresent()) {
      throw CheckpointException.tensor(
          index.fileOf(WeightNames.LM_HEAD),
          index.spelling(WeightNames.LM_HEAD),
          "tied as %s says, a copy of %s"
              .formatted(stated.file().getFileName(), quote(WeightNames.EMBEDDING)),
          "another tensor");
    }
    return same;
  }

  /** Checked, contiguous and aligned. */
  private Tensor load(Weight weight) throws CheckpointException {
    String name = weight.name();
    Tensor tensor = index.tensor(name);
    long[] shape = weight.shape().apply(config);
    if (!Arrays.equals(tensor.shape(), shape)) {
      throw CheckpointException.tensor(
          index.fileOf(name), index.spelling(name), "shape " + Arrays.toString(shape), Arrays.toString(tensor.shape()));
    }
    boolean matrix = WeightNames.isMatrix(name);
    if (!DTYPES.contains(tensor.dtype()) && !(matrix && tensor.dtype().isBlock())) {
      String expected = matrix ? "dtype F32, F16, BF16, Q8_0 or Q4_0" : "dtype F32, F16 or BF16";
      throw CheckpointException.tensor(index.fileOf(name), index.spelling(name), expected, tensor.dtype());
    }
    return tensor.isAligned() ? tensor : tensor.copyTo(arena);
  }

  private LayerWeights layer(int i) {
    Tensor conv = weight(i, WeightNames.CONV);
    return new LayerWeights(
        weight(i, WeightNames.NORM),
        weight(i, WeightNames.IN_PROJ),
        weight(i, WeightNames.IN_PROJ_BIAS),
        conv.reshape(conv.dim(0), conv.dim(2)),
        weight(i, WeightNames.CONV_BIAS),
        weight(i, WeightNames.X_PROJ),
        weight(i, WeightNames.DT_PROJ),
        weight(i, config.family() == Family.MAMBA2 ? WeightNames.DT_BIAS : WeightNames.DT_PROJ_BIAS),
        weight(i, WeightNames.A_LOG),
        weight(i, WeightNames.D),
        weight(i, WeightNames.MIXER_NORM),
        weight(i, WeightNames.OUT_PROJ),
        weight(i, WeightNames.OUT_PROJ_BIAS));
  }

  /** Null where this model has none. */
  private Tensor weight(int layer, String name) {
    return tensors.get(WeightNames.layer(layer, name));
  }
}
