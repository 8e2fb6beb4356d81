package org.mamba4j;

/**
 * Element type in which a model keeps the SSM states of its sequences between tokens. Arithmetic is float32 with either,
 * convolution windows and snapshots are float32 too, so that snapshots go from any model to any other of the same weights.
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
   * some thousand tokens. They still do not depend on the batch in which single tokens are fed. FIGURES
   */
  BF16
}
