package org.mamba4j;

/**
 * Element type in which a model keeps the SSM states of its sequences between tokens. Arithmetic is float32 with
 * either. So are convolution windows and snapshots, which therefore go from any model to any other of the same weights.
 */
public enum StateType {
  /** IEEE 754 binary32. */
  F32,
  /**
   * bfloat16, on a GPU only: a sequence takes half the memory there, and decoding many at once half the time for its
   * state. A state is rounded whenever it is stored, to one of its two neighbours by a chance that the number itself
   * decides, so that small changes add up and the same tokens give the same results again.
   *
   * <p>Results then depend on how a sequence is split into calls: each token fed alone rounds, a prompt does so once in
   * some thousand tokens. With float32 weights, logits of random models of the published 130m shapes are 2e-3 away
   * from those of float32 states after 16 tokens fed one by one, and up to 6e-3 after 1,024 (norm of the difference,
   * relative); with bfloat16 weights 3e-2, which is what another batch size changes too. The perplexity of the bundled
   * model on 4,000 tokens fed one by one rises by 0.03 %.
   */
  BF16
}
