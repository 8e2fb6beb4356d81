package org.mamba4j;

/**
 * Arguments of {@link Ops#causalConv1d}. B batch, L length, C channels, K width. All tensors are F32 and may be
 * strided; on a GPU the activations may be F16 or BF16, see {@link Ops}. Immutable.
 *
 * @param x [B, L, C]
 * @param weight [C, K]
 * @param bias [C], null for none
 * @param silu whether SiLU follows
 * @param initialWindow inputs before x [B, C, K-1], oldest first; null for zeros
 * @param out result [B, L, C], null to allocate it
 * @param lastWindow result [B, C, K-1], may be initialWindow; null if it is not wanted
 */
public record CausalConv1dArgs(
    Tensor x, Tensor weight, Tensor bias, boolean silu, Tensor initialWindow, Tensor out, Tensor lastWindow) {

  /** The required ones; no bias, no SiLU, a window of zeros. */
  public static CausalConv1dArgs of(Tensor x, Tensor weight) {
    return new CausalConv1dArgs(x, weight, null, false, null, null, null);
  }

  /** With a bias. */
  public CausalConv1dArgs withBias(Tensor bias) {
    return new CausalConv1dArgs(x, weight, bias, silu, initialWindow, out, lastWindow);
  }

  /** With SiLU on the result, or not. */
  public CausalConv1dArgs withSilu(boolean silu) {
    return new CausalConv1dArgs(x, weight, bias, silu, initialWindow, out, lastWindow);
  }

  /** With the inputs that came before x. */
  public CausalConv1dArgs withInitialWindow(Tensor initialWindow) {
    return new CausalConv1dArgs(x, weight, bias, silu, initialWindow, out, lastWindow);
  }

  /** With memory for the result. */
  public CausalConv1dArgs withOut(Tensor out) {
    return new CausalConv1dArgs(x, weight, bias, silu, initialWindow, out, lastWindow);
  }

  /** With memory for the last K-1 inputs. */
  public CausalConv1dArgs withLastWindow(Tensor lastWindow) {
    return new CausalConv1dArgs(x, weight, bias, silu, initialWindow, out, lastWindow);
  }
}
