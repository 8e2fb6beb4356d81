package org.mamba4j.checkpoint;

import static org.mamba4j.checkpoint.CheckpointException.in;

import java.util.Arrays;
import org.mamba4j.Family;
import org.mamba4j.ModelConfig;
import org.mamba4j.checkpoint.ConfigObject.Stated;

/** Takes a model's dimensions from the shapes of its tensors and compares them with what the configuration says. */
final class Dimensions {
  private final ConfigFile config;
  private final TensorIndex tensors;

  private Dimensions(ConfigFile config, TensorIndex tensors) {
    this.config = config;
    this.tensors = tensors;
  }

  /** All tensors that the model needs must be there; only some of them are looked at here. */
  static ModelConfig derive(
      ConfigFile config, TensorIndex tensors, int layers, boolean tiedHead, boolean projBias, boolean convBias)
      throws CheckpointException {
    return new Dimensions(config, tensors).derive(layers, tiedHead, projBias, convBias);
  }

  private ModelConfig derive(int layers, boolean tiedHead, boolean projBias, boolean convBias)
      throws CheckpointException {
    long[] embedding = shape(WeightNames.EMBEDDING, 2); // [V, D]
    long[] outProj = layerShape(WeightNames.OUT_PROJ, 2); // [D, E]
    long[] conv = layerShape(WeightNames.CONV, 3); // [C, 1, K]
    long[] aLog = layerShape(WeightNames.A_LOG, config.family() == Family.MAMBA2 ? 1 : 2); // [H] or [E, N]
    long dModel = embedding[1];
    long dInner = outProj[1];

    if (config.vocabSize().value() > embedding[0]) {
      throw contradiction(config.vocabSize(), "the rows of " + WeightNames.EMBEDDING, embedding[0]);
    }
    compare(config.dModel(), "the columns of " + WeightNames.EMBEDDING, dModel);
    compare(config.dInner(), "the columns of " + WeightNames.OUT_PROJ, dInner);
    if (config.expand().isPresent() && (long) (config.expand().get() * dModel) != dInner) {
      throw in(
          config.file(),
          "expand %s contradicts the tensors: d_inner is %d and d_model %d"
              .formatted(config.expand().get(), dInner, dModel));
    }
    compare(config.dConv(), "the width of " + WeightNames.CONV, conv[2]);
    if (conv[2] > Integer.MAX_VALUE) {
      throw wrong(WeightNames.CONV, "a width below 2^31", Arrays.toString(conv));
    }

    long dState;
    long dtRank = 0;
    long nHeads = 0;
    long nGroups = 0;
    if (config.family() == Family.MAMBA2) {
      nHeads = aLog[0];
      if (dInner % nHeads != 0) {
        throw wrong(WeightNames.A_LOG, "a number of heads that divides d_inner " + dInner, nHeads);
      }
      compare(config.nHeads(), "the length of " + WeightNames.A_LOG, nHeads);
      compare(config.headDim(), "d_inner / heads of the tensors", dInner / nHeads);
      nGroups = groups(conv[0] - dInner, nHeads);
      dState = (conv[0] - dInner) / (2 * nGroups);
    } else {
      dState = aLog[1];
      dtRank = layerShape(WeightNames.DT_PROJ, 2)[1];
      compare(config.dtRank(), "the columns of " + WeightNames.DT_PROJ, dtRank);
      if (config.dtRankAuto()) {
        compare(new Stated("dt_rank auto", Math.ceilDiv(dModel, 16)), "the columns of " + WeightNames.DT_PROJ, dtRank);
      }
    }
    compare(config.dState(), "d_state of the tensors", dState);

    return new ModelConfig(
        config.family(),
        layers,
        embedding[0],
        dModel,
        dInner,
        dState,
        (int) conv[2],
        dtRank,
        nHeads,
        config.family() == Family.MAMBA2 ? dInner / nHeads : 0,
        nGroups,
        config.chunkSize(),
        config.normEps(),
        config.mixerNormEps(),
        config.family() == Family.MAMBA2 ? config.dtLimit()[0] : 0,
        config.family() == Family.MAMBA2 ? config.dtLimit()[1] : 0,
        tiedHead,
        projBias,
        convBias,
        config.eosTokenIds());
  }

  /** The conv channels beyond d_inner are 2 * n_groups * d_state: one of the two must be stated to know the other. */
  private long groups(long channels, long nHeads) throws CheckpointException {
    if (channels <= 0 || channels % 2 != 0) {
      throw wrong(
          WeightNames.CONV, "d_inner + 2 * n_groups * d_state channels", channels + " channels beyond d_inner");
    }
    long dState = config.dState().value();
    long groups = config.defaultGroups();
    if (config.nGroups().isPresent()) {
      groups = config.nGroups().value();
    } else if (dState > 0 && channels / 2 % dState == 0) {
      groups = channels / 2 / dState;
    }
    if (nHeads % groups != 0) {
      throw in(
          config.file(),
          "%s %d must divide the number of heads, %d".formatted(config.nGroups().key(), groups, nHeads));
    }
    if (channels / 2 % groups != 0) {
      throw wrong(
          WeightNames.CONV,
          "d_inner + 2 * n_groups * d_state channels with n_groups " + groups,
          channels + " channels beyond d_inner");
    }
    return groups;
  }

  private void compare(Stated stated, String where, long found) throws CheckpointException {
    if (stated.isPresent() && stated.value() != found) {
      throw contradiction(stated, where, found);
    }
  }

  private CheckpointException contradiction(Stated stated, String where, long found) {
    return in(
        config.file(),
        "%s %d contradicts %s in %s: %d"
            .formatted(stated.key(), stated.value(), where, tensors.source().getFileName(), found));
  }

  private long[] layerShape(String name, int rank) throws CheckpointException {
    return shape(WeightNames.layer(0, name), rank);
  }

  private long[] shape(String name, int rank) throws CheckpointException {
    long[] shape = tensors.tensor(name).shape();
    if (shape.length != rank || Arrays.stream(shape).anyMatch(dim -> dim < 1)) {
      throw CheckpointException.tensor(
          tensors.fileOf(name), tensors.spelling(name), rank + " dimensions of at least 1", Arrays.toString(shape));
    }
    return shape;
  }

  private CheckpointException wrong(String name, String expected, Object found) {
    String full = WeightNames.layer(0, name);
    return CheckpointException.tensor(tensors.fileOf(full), tensors.spelling(full), expected, found);
  }
}
