package org.mamba4j;

import java.util.Arrays;
import java.util.Objects;

/**
 * Dimensions and constants of a model, taken from the shapes of its tensors and from its {@code config.json}. The names
 * are those of the papers and the state-spaces code; fields that a family lacks are 0.
 *
 * @param family what a block computes
 * @param layers blocks (n_layer)
 * @param vocabSize rows of the embedding, padding included (vocab_size)
 * @param dModel width of the residual stream (d_model)
 * @param dInner width inside a block (d_inner)
 * @param dState size of the SSM state per channel or per head row (d_state)
 * @param dConv width of the causal convolution (d_conv)
 * @param dtRank rank of the projection to dt (dt_rank); Mamba-1 and Falcon-Mamba
 * @param nHeads heads (nheads); Mamba-2
 * @param headDim channels per head (headdim), {@code dInner == nHeads * headDim}; Mamba-2
 * @param nGroups groups that share B and C (ngroups), divides {@code nHeads}; Mamba-2
 * @param chunkSize tokens per SSD chunk in prefill (chunk_size); Mamba-2
 * @param normEps epsilon of the block norms, the final norm and the gated norm
 * @param mixerNormEps epsilon of the weightless norms on dt, B and C; Falcon-Mamba
 * @param dtMin lower end of time_step_limit (dt_limit); Mamba-2
 * @param dtMax upper end of time_step_limit, may be infinite; Mamba-2
 * @param tiedHead whether the output projection is the embedding
 * @param projBias whether in_proj and out_proj have a bias
 * @param convBias whether the convolution has a bias
 * @param eosTokenIds token ids that end a text, as the configuration names them; may be empty
 */
public record ModelConfig(
    Family family,
    int layers,
    long vocabSize,
    long dModel,
    long dInner,
    long dState,
    int dConv,
    long dtRank,
    long nHeads,
    long headDim,
    long nGroups,
    long chunkSize,
    float normEps,
    float mixerNormEps,
    float dtMin,
    float dtMax,
    boolean tiedHead,
    boolean projBias,
    boolean convBias,
    int[] eosTokenIds) {

  /** Copies {@code eosTokenIds}. */
  public ModelConfig {
    Objects.requireNonNull(family, "family");
    eosTokenIds = eosTokenIds.clone();
  }

  /** A copy of the token ids that end a text. */
  @Override
  public int[] eosTokenIds() {
    return eosTokenIds.clone();
  }

  /** Channels of the convolution: d_inner, in Mamba-2 d_inner + 2 * n_groups * d_state. */
  public long convChannels() {
    return family == Family.MAMBA2 ? dInner + 2 * nGroups * dState : dInner;
  }

  /** Shape of a sequence's conv windows: [layers, channels, d_conv - 1]. */
  public long[] convStateShape() {
    return new long[] {layers, convChannels(), dConv - 1L};
  }

  /** Shape of a sequence's SSM states: [layers, d_inner, d_state], in Mamba-2 [layers, heads, headdim, d_state]. */
  public long[] ssmStateShape() {
    return family == Family.MAMBA2
        ? new long[] {layers, nHeads, headDim, dState}
        : new long[] {layers, dInner, dState};
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof ModelConfig c
        && family == c.family
        && layers == c.layers
        && vocabSize == c.vocabSize
        && dModel == c.dModel
        && dInner == c.dInner
        && dState == c.dState
        && dConv == c.dConv
        && dtRank == c.dtRank
        && nHeads == c.nHeads
        && headDim == c.headDim
        && nGroups == c.nGroups
        && chunkSize == c.chunkSize
        && Float.compare(normEps, c.normEps) == 0
        && Float.compare(mixerNormEps, c.mixerNormEps) == 0
        && Float.compare(dtMin, c.dtMin) == 0
        && Float.compare(dtMax, c.dtMax) == 0
        && tiedHead == c.tiedHead
        && projBias == c.projBias
        && convBias == c.convBias
        && Arrays.equals(eosTokenIds, c.eosTokenIds);
  }

  @Override
  public int hashCode() {
    return Objects.hash(family, layers, vocabSize, dModel, dInner, dState, dConv, nHeads, Arrays.hashCode(eosTokenIds));
  }
}
