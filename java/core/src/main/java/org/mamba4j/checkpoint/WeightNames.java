package org.mamba4j.checkpoint;

import java.util.ArrayList;
import java.util.List;
import java.util.function.Function;
import java.util.regex.Pattern;
import org.mamba4j.Family;
import org.mamba4j.ModelConfig;

/** Names and shapes of a model's tensors, as Hugging Face transformers writes them. */
final class WeightNames {
  static final String EMBEDDING = "backbone.embeddings.weight";
  static final String NORM_F = "backbone.norm_f.weight";
  static final String LM_HEAD = "lm_head.weight";

  static final String NORM = "norm.weight";
  static final String IN_PROJ = "mixer.in_proj.weight";
  static final String IN_PROJ_BIAS = "mixer.in_proj.bias";
  static final String CONV = "mixer.conv1d.weight";
  static final String CONV_BIAS = "mixer.conv1d.bias";
  static final String X_PROJ = "mixer.x_proj.weight";
  static final String DT_PROJ = "mixer.dt_proj.weight";
  static final String DT_PROJ_BIAS = "mixer.dt_proj.bias";
  static final String DT_BIAS = "mixer.dt_bias";
  static final String A_LOG = "mixer.A_log";
  static final String D = "mixer.D";
  static final String MIXER_NORM = "mixer.norm.weight";
  static final String OUT_PROJ = "mixer.out_proj.weight";
  static final String OUT_PROJ_BIAS = "mixer.out_proj.bias";

  /** A tensor's name and, once the dimensions are known, its shape. */
  record Weight(String name, Function<ModelConfig, long[]> shape) {
    Weight in(int layer) {
      return new Weight(layer(layer, name), shape);
    }
  }

  private static final Pattern MATRIX =
      Pattern.compile("backbone\\.embeddings\\.weight|lm_head\\.weight|.*_proj\\.weight", Pattern.DOTALL);

  private WeightNames() {}

  /** Whether a tensor may be held in another element type than float32, in blocks too. */
  static boolean isMatrix(String name) {
    return MATRIX.matcher(name).matches();
  }

  static String layer(int layer, String name) {
    return "backbone.layers." + layer + "." + name;
  }

  /** Every tensor that a model of this kind has, in the order of the forward pass. */
  static List<Weight> model(Family family, int layers, boolean projBias, boolean convBias, boolean head) {
    var block = block(family, projBias, convBias);
    var all = new ArrayList<Weight>();
    all.add(new Weight(EMBEDDING, c -> shape(c.vocabSize(), c.dModel())));
    for (int i = 0; i < layers; i++) {
      for (Weight weight : block) {
        all.add(weight.in(i));
      }
    }
    all.add(new Weight(NORM_F, c -> shape(c.dModel())));
    if (head) {
      all.add(new Weight(LM_HEAD, c -> shape(c.vocabSize(), c.dModel())));
    }
    return all;
  }

  private static List<Weight> block(Family family, boolean projBias, boolean convBias) {
    boolean mamba2 = family == Family.MAMBA2;
    var block = new ArrayList<Weight>();
    block.add(new Weight(NORM, c -> shape(c.dModel())));
    block.add(new Weight(IN_PROJ, c -> shape(inProjRows(c), c.dModel())));
    if (projBias) {
      block.add(new Weight(IN_PROJ_BIAS, c -> shape(inProjRows(c))));
    }
    block.add(new Weight(CONV, c -> shape(c.convChannels(), 1, c.dConv())));
    if (convBias) {
      block.add(new Weight(CONV_BIAS, c -> shape(c.convChannels())));
    }
    if (mamba2) {
      block.add(new Weight(DT_BIAS, c -> shape(c.nHeads())));
      block.add(new Weight(A_LOG, c -> shape(c.nHeads())));
      block.add(new Weight(D, c -> shape(c.nHeads())));
      block.add(new Weight(MIXER_NORM, c -> shape(c.dInner())));
    } else {
      block.add(new Weight(X_PROJ, c -> shape(c.dtRank() + 2 * c.dState(), c.dInner())));
      block.add(new Weight(DT_PROJ, c -> shape(c.dInner(), c.dtRank())));
      block.add(new Weight(DT_PROJ_BIAS, c -> shape(c.dInner())));
      block.add(new Weight(A_LOG, c -> shape(c.dInner(), c.dState())));
      block.add(new Weight(D, c -> shape(c.dInner())));
    }
    block.add(new Weight(OUT_PROJ, c -> shape(c.dModel(), c.dInner())));
    if (projBias) {
      block.add(new Weight(OUT_PROJ_BIAS, c -> shape(c.dModel())));
    }
    return block;
  }

  private static long inProjRows(ModelConfig c) {
    return c.family() == Family.MAMBA2
        ? 2 * c.dInner() + 2 * c.nGroups() * c.dState() + c.nHeads()
        : 2 * c.dInner();
  }

  private static long[] shape(long... dims) {
    return dims;
  }
}
