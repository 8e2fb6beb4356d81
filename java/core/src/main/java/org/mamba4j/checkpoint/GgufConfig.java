package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.util.LinkedHashSet;
import java.util.Optional;
import org.mamba4j.Family;
import org.mamba4j.checkpoint.ConfigObject.Stated;

/** What the metadata of a GGUF file says about a model. */
final class GgufConfig {
  static final String ARCHITECTURE = "general.architecture";
  static final String EOS = "tokenizer.ggml.eos_token_id";
  static final String ALL_EOS = "tokenizer.ggml.eos_token_ids"; // where a model has several
  static final String CHUNK_SIZE = "ssm.chunk_size"; // written by this library alone
  private static final long DEFAULT_CHUNK_SIZE = 256; // what the original models use

  // Falcon-Mamba's own constant, which the file does not hold: llama.cpp takes the epsilon of the other norms instead.
  static final float FALCON_MIXER_EPS = 1e-6f;

  private final GgufMetadata metadata;
  private final String prefix;

  private GgufConfig(GgufMetadata metadata, String prefix) {
    this.metadata = metadata;
    this.prefix = prefix;
  }

  /** Refuses architectures other than mamba and mamba2. */
  static ConfigFile of(GgufFile file) throws CheckpointException {
    GgufMetadata metadata = file.metadata();
    String architecture = metadata.text(ARCHITECTURE).orElse(null);
    if (!"mamba".equals(architecture) && !"mamba2".equals(architecture)) {
      throw metadata.wrong(
          ARCHITECTURE, "mamba or mamba2", architecture == null ? "nothing" : quote(architecture));
    }
    return new GgufConfig(metadata, architecture + ".").read(file, architecture.equals("mamba2"));
  }

  private ConfigFile read(GgufFile file, boolean mamba2) throws CheckpointException {
    boolean falcon = !mamba2 && metadata.flag(prefix + "ssm.dt_b_c_rms").orElse(false);
    Stated rank = dimension("ssm.time_step_rank"); // Mamba-2: the number of heads
    return new ConfigFile(
        file.path(),
        true,
        mamba2 ? Family.MAMBA2 : falcon ? Family.FALCON_MAMBA : Family.MAMBA1,
        dimension("block_count"),
        Stated.nothing("vocab_size"),
        dimension("embedding_length"),
        dimension("ssm.inner_size"),
        Optional.empty(),
        dimension("ssm.state_size"),
        dimension("ssm.conv_kernel"),
        mamba2 ? Stated.nothing(rank.key()) : rank,
        false,
        mamba2 ? rank : Stated.nothing(rank.key()),
        Stated.nothing("head_dim"),
        mamba2 ? dimension("ssm.group_count") : Stated.nothing("ssm.group_count"),
        1,
        mamba2 ? chunkSize() : 0,
        epsilon("attention.layer_norm_rms_epsilon"),
        falcon ? FALCON_MIXER_EPS : 0,
        new float[] {0, Float.POSITIVE_INFINITY},
        Optional.empty(),
        Optional.of(false),
        Optional.empty(),
        endTokens());
  }

  private Stated dimension(String name) throws CheckpointException {
    String key = prefix + name;
    var value = metadata.integer(key);
    if (value.isEmpty() || value.getAsLong() < 1) {
      throw metadata.wrong(key, "an integer from 1", value.isEmpty() ? "nothing" : value.getAsLong());
    }
    return new Stated(key, value.getAsLong());
  }

  private long chunkSize() throws CheckpointException {
    String key = prefix + CHUNK_SIZE;
    long size = metadata.integer(key).orElse(DEFAULT_CHUNK_SIZE);
    if (size < 1 || size > ConfigFile.MAX_CHUNK_SIZE) {
      throw metadata.wrong(key, "1 to " + ConfigFile.MAX_CHUNK_SIZE, size);
    }
    return size;
  }

  private float epsilon(String name) throws CheckpointException {
    String key = prefix + name;
    var value = metadata.number(key);
    float epsilon = (float) value.orElse(0);
    if (!(epsilon > 0) || Float.isInfinite(epsilon)) {
      throw metadata.wrong(key, "a positive number", value.isEmpty() ? "nothing" : value.getAsDouble());
    }
    return epsilon;
  }

  private int[] endTokens() throws CheckpointException {
    var ids = new LinkedHashSet<Integer>();
    var first = metadata.integer(EOS);
    if (first.isPresent()) {
      ids.add(tokenId(EOS, first.getAsLong()));
    }
    for (long id : metadata.integers(ALL_EOS).orElse(new long[0])) {
      ids.add(tokenId(ALL_EOS, id));
    }
    return ids.stream().mapToInt(Integer::intValue).toArray();
  }

  private int tokenId(String key, long id) throws CheckpointException {
    if (id < 0 || id > Integer.MAX_VALUE) {
      throw metadata.wrong(key, "a token id", id);
    }
    return (int) id;
  }
}
