package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;
import static org.mamba4j.checkpoint.CheckpointException.quote;

import java.io.IOException;
import java.nio.file.Path;
import java.util.Map;
import java.util.Optional;
import org.mamba4j.Family;
import org.mamba4j.checkpoint.ConfigObject.Stated;

/**
 * What a {@code config.json}, in the layout of Hugging Face or of state-spaces, or a GGUF file says. Dimensions are only
 * statements, to be compared with the tensors.
 *
 * @param original whether this is not Hugging Face's layout
 * @param expand factor from d_model to d_inner, empty where the layout leaves it open or it means nothing
 */
record ConfigFile(
    Path file,
    boolean original,
    Family family,
    Stated layers,
    Stated vocabSize,
    Stated dModel,
    Stated dInner,
    Optional<Double> expand,
    Stated dState,
    Stated dConv,
    Stated dtRank,
    boolean dtRankAuto,
    Stated nHeads,
    Stated headDim,
    Stated nGroups,
    long defaultGroups,
    long chunkSize,
    float normEps,
    float mixerNormEps,
    float[] dtLimit,
    Optional<Boolean> tiedHead,
    Optional<Boolean> projBias,
    Optional<Boolean> convBias,
    int[] eosTokenIds) {

  static final int MAX_BYTES = 16 << 20;
  static final long MAX_CHUNK_SIZE = 4096;
  private static final float[] NO_LIMIT = {0, Float.POSITIVE_INFINITY};

  private static final Map<String, Family> FAMILIES =
      Map.of("mamba", Family.MAMBA1, "mamba2", Family.MAMBA2, "falcon_mamba", Family.FALCON_MAMBA);

  private static final Map<String, String> HYBRIDS =
      Map.of(
          "jamba", "Jamba, a hybrid: its attention layers and mixture-of-experts are missing here",
          "zamba", "Zamba, a hybrid: its shared attention layers are missing here",
          "zamba2", "Zamba2, a hybrid: its shared attention layers with adapters are missing here",
          "bamba", "Bamba, a hybrid: its attention layers and MLP blocks are missing here",
          "granitemoehybrid", "Granite 4, a hybrid: its attention layers and mixture-of-experts are missing here",
          "nemotron_h", "Nemotron-H, a hybrid: its attention layers and MLP blocks are missing here",
          "falcon_h1", "Falcon-H1, a hybrid: its attention heads beside the SSM and MLP blocks are missing here");

  /** Reads a configuration; refuses what it describes if that is more than a stack of Mamba blocks. */
  static ConfigFile parse(Path file, byte[] json) throws IOException {
    var config = new ConfigObject(file, "", Json.tree(file, "the configuration", json));
    if (config.has("model_type")) {
      return huggingFace(config);
    }
    if (config.has("d_model") && config.has("n_layer")) {
      return stateSpaces(config);
    }
    throw in(file, "expected model_type (Hugging Face) or d_model and n_layer (state-spaces), found neither");
  }

  private static ConfigFile huggingFace(ConfigObject c) throws CheckpointException {
    String type = c.text("model_type").orElseThrow();
    if (HYBRIDS.containsKey(type)) {
      throw unsupported(c, "model_type " + quote(type) + " is " + HYBRIDS.get(type));
    }
    Family family = FAMILIES.get(type);
    if (family == null) {
      throw c.wrong("model_type", "mamba, mamba2 or falcon_mamba", type);
    }
    refuseUnsupported(c, "hidden_act");
    if (c.has("quantization_config")) {
      throw unsupported(c, "quantization_config: weights quantised by other tools are not read");
    }
    boolean mamba2 = family == Family.MAMBA2;
    boolean auto = !mamba2 && c.is("time_step_rank", "auto");
    return new ConfigFile(
        c.file(),
        false,
        family,
        c.dimension("num_hidden_layers"),
        c.dimension("vocab_size"),
        c.dimension("hidden_size"),
        c.dimension("intermediate_size"),
        family == Family.FALCON_MAMBA || c.has("intermediate_size") ? Optional.empty() : c.number("expand"),
        c.dimension("state_size"),
        c.dimension("conv_kernel"),
        mamba2 || auto ? Stated.nothing("time_step_rank") : c.dimension("time_step_rank"),
        auto,
        mamba2 ? c.dimension("num_heads") : Stated.nothing("num_heads"),
        mamba2 ? c.dimension("head_dim") : Stated.nothing("head_dim"),
        mamba2 ? c.dimension("n_groups", "ngroups") : Stated.nothing("n_groups"),
        8,
        mamba2 ? chunkSize(c) : 0,
        c.epsilon("layer_norm_epsilon", 1e-5f),
        family == Family.FALCON_MAMBA ? c.epsilon("mixer_rms_eps", 1e-6f) : 0,
        mamba2 ? c.range("time_step_limit").orElse(NO_LIMIT) : NO_LIMIT,
        c.flag("tie_word_embeddings"),
        c.flag("use_bias"),
        c.flag("use_conv_bias"),
        c.tokenIds("eos_token_id"));
  }

  private static ConfigFile stateSpaces(ConfigObject c) throws CheckpointException {
    if (!c.isEmptyList("attn_layer_idx")) {
      throw unsupported(c, "attn_layer_idx makes it a hybrid (mamba2attn): its attention layers are missing here");
    }
    if (c.count("d_intermediate") > 0) {
      throw unsupported(c, "d_intermediate asks for MLP blocks between the Mamba blocks");
    }
    ConfigObject ssm = c.object("ssm_cfg");
    String layer = ssm.text("layer").orElse("Mamba1");
    boolean mamba2 = layer.equals("Mamba2");
    if (!mamba2 && !layer.equals("Mamba1")) {
      throw ssm.wrong("layer", "Mamba1 or Mamba2", layer);
    }
    refuseUnsupported(c, "hidden_act");
    refuseUnsupported(ssm, "activation");
    for (String key : new String[] {"norm_before_gate", "D_has_hdim"}) {
      if (ssm.flag(key).orElse(false)) {
        throw unsupported(c, "ssm_cfg." + key + " true asks for another block");
      }
    }
    if (mamba2 && !ssm.flag("rmsnorm").orElse(true)) {
      throw unsupported(c, "ssm_cfg.rmsnorm false asks for a block without gated norm");
    }
    if (ssm.has("d_ssm")) {
      throw unsupported(c, "ssm_cfg.d_ssm asks for an MLP inside of the block");
    }
    boolean auto = !mamba2 && ssm.is("dt_rank", "auto");
    return new ConfigFile(
        c.file(),
        true,
        mamba2 ? Family.MAMBA2 : Family.MAMBA1,
        c.dimension("n_layer"),
        c.dimension("vocab_size"),
        c.dimension("d_model"),
        Stated.nothing("d_inner"),
        ssm.number("expand"),
        ssm.dimension("d_state"),
        ssm.dimension("d_conv"),
        mamba2 || auto ? Stated.nothing("dt_rank") : ssm.dimension("dt_rank"),
        auto,
        Stated.nothing("nheads"),
        mamba2 ? ssm.dimension("headdim") : Stated.nothing("headdim"),
        mamba2 ? ssm.dimension("ngroups", "n_groups") : Stated.nothing("ngroups"),
        1,
        mamba2 ? chunkSize(ssm) : 0,
        c.epsilon("norm_epsilon", 1e-5f),
        0,
        mamba2 ? ssm.range("dt_limit").orElse(NO_LIMIT) : NO_LIMIT,
        c.flag("tie_embeddings"),
        ssm.flag("bias"),
        ssm.flag("conv_bias"),
        c.tokenIds("eos_token_id"));
  }

  private static long chunkSize(ConfigObject c) throws CheckpointException {
    Stated size = c.dimension("chunk_size");
    if (size.value() > MAX_CHUNK_SIZE) {
      throw c.wrong("chunk_size", "1 to " + MAX_CHUNK_SIZE, size.value());
    }
    return size.isPresent() ? size.value() : 256;
  }

  private static void refuseUnsupported(ConfigObject c, String activation) throws CheckpointException {
    if (!c.flag("rms_norm").orElse(true)) {
      throw unsupported(c, "rms_norm false asks for LayerNorm instead of RMSNorm");
    }
    String name = c.text(activation).orElse("silu");
    if (!name.equals("silu") && !name.equals("swish")) {
      throw c.wrong(activation, "silu", name);
    }
  }

  private static CheckpointException unsupported(ConfigObject c, String what) {
    return in(c.file(), what + "; only stacks of Mamba blocks are supported: mamba, mamba2 and falcon_mamba");
  }
}
