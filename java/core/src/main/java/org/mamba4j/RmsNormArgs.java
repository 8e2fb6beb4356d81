package org.mamba4j;

/**
 * Arguments of {@link Ops#rmsNorm}. All tensors are F32 and may be strided; on a GPU the activations may be F16 or
 * BF16, see {@link Ops}. Immutable.
 *
 * @param x [rows, D]
 * @param gate [rows, D]: the input is x * silu(gate); null for none
 * @param weight [D], null for ones
 * @param groups equal parts of D that are normalised by themselves
 * @param eps added to the mean of squares
 * @param out result [rows, D], may be x; null to allocate it
 */
public record RmsNormArgs(Tensor x, Tensor gate, Tensor weight, long groups, float eps, Tensor out) {
  /** The required ones; one group, no gate, no weight. */
  public static RmsNormArgs of(Tensor x, float eps) {
    return new RmsNormArgs(x, null, null, 1, eps, null);
  }

  /** With a gate. */
  public RmsNormArgs withGate(Tensor gate) {
    return new RmsNormArgs(x, gate, weight, groups, eps, out);
  }

  /** With a weight. */
  public RmsNormArgs withWeight(Tensor weight) {
    return new RmsNormArgs(x, gate, weight, groups, eps, out);
  }

  /** With another number of groups. */
  public RmsNormArgs withGroups(long groups) {
    return new RmsNormArgs(x, gate, weight, groups, eps, out);
  }

  /** With memory for the result. */
  public RmsNormArgs withOut(Tensor out) {
    return new RmsNormArgs(x, gate, weight, groups, eps, out);
  }
}
