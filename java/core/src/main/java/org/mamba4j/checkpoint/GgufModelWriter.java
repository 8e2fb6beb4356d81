package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.mamba4j.DType;
import org.mamba4j.Engine;
import org.mamba4j.Family;
import org.mamba4j.ModelConfig;
import org.mamba4j.Ops;
import org.mamba4j.ProgressListener;
import org.mamba4j.Tensor;
import org.mamba4j.WeightType;
import org.mamba4j.internal.FloatConversion;

/**
 * Writes a model as a GGUF file with the names and keys of llama.cpp's converter. Its matrices have the type that they
 * would have in memory, everything else is F32: the file gives the logits that the model gives when it is loaded with
 * this type. The vocabulary stays outside.
 */
public final class GgufModelWriter {
  private static final long PIECE_ELEMENTS = 1 << 21; // of a matrix that are converted at once

  private final Checkpoint checkpoint;
  private final ModelConfig config;
  private final WeightType weights;
  private final Engine engine;
  private final ProgressListener progress;
  private final List<Map.Entry<String, Tensor>> tensors;
  private final List<GgufWriter.Entry> entries = new ArrayList<>();
  private long totalBytes;
  private long doneBytes;

  private GgufModelWriter(Checkpoint checkpoint, WeightType weights, Engine engine, ProgressListener progress) {
    this.checkpoint = checkpoint;
    this.config = checkpoint.config();
    this.weights = weights;
    this.engine = engine;
    this.progress = progress;
    this.tensors = List.copyOf(checkpoint.hfTensors().entrySet());
    var names = new GgufNames(config.family());
    for (var tensor : tensors) {
      var entry = entry(names.spelling(tensor.getKey()), tensor.getKey(), tensor.getValue());
      entries.add(entry);
      totalBytes = Math.addExact(totalBytes, entry.bytes());
    }
  }

  /**
   * Writes a file that appears at once and complete. An existing one is replaced.
   *
   * @param name what the file calls the model
   * @param engine quantises
   * @throws CheckpointException if the format has no place for something that the model has
   * @throws IllegalArgumentException if a weight does not fit {@code weights}
   */
  public static void write(
      Path path, String name, Checkpoint checkpoint, WeightType weights, Engine engine, ProgressListener progress)
      throws IOException {
    requireExpressible(checkpoint);
    var writer = new GgufModelWriter(checkpoint, weights, engine, progress);
    writer.metadata(name).write(path, writer.entries, writer::writeTensor);
  }

  private static void requireExpressible(Checkpoint checkpoint) throws CheckpointException {
    ModelConfig c = checkpoint.config();
    String problem = null;
    if (c.projBias()) {
      problem = "the biases of in_proj and out_proj";
    } else if (!c.convBias()) {
      problem = "a convolution without bias";
    } else if (c.family() == Family.MAMBA2 && (c.dtMin() != 0 || c.dtMax() != Float.POSITIVE_INFINITY)) {
      problem = "time_step_limit [%s, %s]".formatted(c.dtMin(), c.dtMax());
    } else if (c.family() == Family.FALCON_MAMBA && c.mixerNormEps() != GgufConfig.FALCON_MIXER_EPS) {
      problem = "mixer_rms_eps %s, only for %s".formatted(c.mixerNormEps(), GgufConfig.FALCON_MIXER_EPS);
    }
    if (problem != null) {
      throw in(checkpoint.files().getFirst(), "a GGUF file of this architecture has no place for " + problem);
    }
  }

  private GgufWriter metadata(String name) {
    boolean mamba2 = config.family() == Family.MAMBA2;
    String architecture = mamba2 ? "mamba2" : "mamba";
    String prefix = architecture + ".";
    var writer =
        new GgufWriter()
            .text(GgufConfig.ARCHITECTURE, architecture)
            .text("general.name", name)
            .integer("general.file_type", fileType())
            .integer("general.quantization_version", 2)
            .integer(prefix + "context_length", 1 << 20)
            .integer(prefix + "vocab_size", config.vocabSize())
            .integer(prefix + "embedding_length", config.dModel())
            .integer(prefix + "feed_forward_length", 0)
            .integer(prefix + "attention.head_count", 0)
            .integer(prefix + "block_count", config.layers())
            .integer(prefix + "ssm.conv_kernel", config.dConv())
            .integer(prefix + "ssm.inner_size", config.dInner())
            .integer(prefix + "ssm.state_size", config.dState())
            .integer(prefix + "ssm.time_step_rank", mamba2 ? config.nHeads() : config.dtRank())
            .number(prefix + "attention.layer_norm_rms_epsilon", config.normEps());
    if (mamba2) {
      writer
          .integer(prefix + "ssm.group_count", config.nGroups())
          .integer(prefix + GgufConfig.CHUNK_SIZE, config.chunkSize());
    } else {
      writer.flag(prefix + "ssm.dt_b_c_rms", config.family() == Family.FALCON_MAMBA);
    }
    writer.text("tokenizer.ggml.model", "no_vocab");
    int[] ends = config.eosTokenIds();
    if (ends.length > 0) {
      writer.integer(GgufConfig.EOS, ends[0]);
    }
    return ends.length > 1 ? writer.integers(GgufConfig.ALL_EOS, ends) : writer;
  }

  /** What llama.cpp calls a file whose matrices have the type of the embedding. */
  private int fileType() {
    DType dtype = weights.of(WeightNames.EMBEDDING, checkpoint.embedding());
    return switch (dtype) {
      case F32 -> 0;
      case F16 -> 1;
      case Q4_0 -> 2;
      case Q8_0 -> 7;
      case BF16 -> 32;
      default -> throw new IllegalArgumentException(WeightNames.EMBEDDING + ": " + dtype);
    };
  }

  private GgufWriter.Entry entry(String spelling, String name, Tensor tensor) {
    boolean mamba2 = config.family() == Family.MAMBA2;
    long[] shape = tensor.shape();
    if (GgufNames.inBlockIs(spelling, GgufNames.CONV)) {
      shape = new long[] {shape[0], shape[2]};
    } else if (mamba2 && GgufNames.inBlockIs(spelling, GgufNames.MIXER_NORM)) {
      shape = new long[] {config.nGroups(), config.dInner() / config.nGroups()};
    } else if (mamba2
        && (GgufNames.inBlockIs(spelling, GgufNames.A) || GgufNames.inBlockIs(spelling, GgufNames.D))) {
      shape = new long[] {shape[0], 1};
    }
    return new GgufWriter.Entry(
        spelling, WeightNames.isMatrix(name) ? weights.of(name, tensor) : DType.F32, shape);
  }

  private void writeTensor(int index, FileChannel out) throws IOException {
    GgufWriter.Entry entry = entries.get(index);
    Tensor stored = tensors.get(index).getValue();
    Tensor rows = stored.rank() == 1 ? stored.reshape(1, stored.size()) : stored;
    long perPiece = Math.max(1, PIECE_ELEMENTS / (rows.size() / rows.dim(0)));
    try (Arena arena = Arena.ofConfined()) {
      long[] shape = rows.shape();
      shape[0] = Math.min(perPiece, shape[0]);
      Tensor buffer = Tensor.allocate(arena, entry.dtype(), shape);
      for (long from = 0; from < rows.dim(0); from += perPiece) {
        Tensor piece = rows.slice(0, from, Math.min(from + perPiece, rows.dim(0)));
        put(piece(entry, piece, buffer.slice(0, 0, piece.dim(0))), out);
      }
    } catch (IllegalArgumentException e) {
      throw new IllegalArgumentException(tensors.get(index).getKey() + ": " + e.getMessage(), e);
    }
  }

  private MemorySegment piece(GgufWriter.Entry entry, Tensor stored, Tensor buffer) throws CheckpointException {
    if (GgufNames.inBlockIs(entry.name(), GgufNames.A)) {
      computeA(entry, stored.reshape(stored.size()), buffer.reshape(stored.size()));
    } else if (stored.dtype() == entry.dtype()) {
      return stored.segment();
    } else if (entry.dtype().isBlock()) {
      Ops.quantize(engine, stored, buffer);
    } else {
      FloatConversion.convert(entry.name(), stored, buffer);
    }
    return buffer.segment();
  }

  private void computeA(GgufWriter.Entry entry, Tensor aLog, Tensor a) throws CheckpointException {
    for (long i = 0; i < a.size(); i++) {
      float value = GgufWeights.a(aLog.getFloat(i));
      if (!(value < 0) || Float.isInfinite(value)) {
        String found = "A_log " + aLog.getFloat(i);
        throw CheckpointException.tensor(checkpoint.files().getFirst(), entry.name(), "-exp(A_log) below 0", found);
      }
      a.setFloat(value, i);
    }
  }

  private void put(MemorySegment bytes, FileChannel out) throws IOException {
    OutputFiles.write(out, bytes);
    doneBytes += bytes.byteSize();
    progress.progress("weights", doneBytes, totalBytes);
  }
}
