package org.mamba4j;

/**
 * Arguments of {@link Ops#selectiveScan}. B batch, L length, E channels (d_inner), N d_state, G groups. All tensors
 * are F32 and may be strided; on a GPU the activations may be F16 or BF16, see {@link Ops}. Immutable.
 *
 * @param u [B, E, L]
 * @param delta [B, E, L]
 * @param a [E, N], negative for a stable system
 * @param b [B, G, N, L], G divides E
 * @param c [B, G, N, L]
 * @param d [E], null for none
 * @param z gate [B, E, L], null for none
 * @param deltaBias [E], null for none
 * @param deltaSoftplus whether delta is softplus(delta + deltaBias)
 * @param initialState [B, E, N], null for zeros
 * @param out result [B, E, L], null to allocate it
 * @param lastState result [B, E, N], may be initialState; null if it is not wanted
 */
public record SelectiveScanArgs(
    Tensor u,
    Tensor delta,
    Tensor a,
    Tensor b,
    Tensor c,
    Tensor d,
    Tensor z,
    Tensor deltaBias,
    boolean deltaSoftplus,
    Tensor initialState,
    Tensor out,
    Tensor lastState) {

  /** The required ones; no gate, D, bias, softplus or initial state. */
  public static SelectiveScanArgs of(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c) {
    return new SelectiveScanArgs(u, delta, a, b, c, null, null, null, false, null, null, null);
  }

  /** With the skip connection D. */
  public SelectiveScanArgs withD(Tensor d) {
    return new SelectiveScanArgs(u, delta, a, b, c, d, z, deltaBias, deltaSoftplus, initialState, out, lastState);
  }

  /** With the gate z. */
  public SelectiveScanArgs withZ(Tensor z) {
    return new SelectiveScanArgs(u, delta, a, b, c, d, z, deltaBias, deltaSoftplus, initialState, out, lastState);
  }

  /** With a bias added to delta. */
  public SelectiveScanArgs withDeltaBias(Tensor deltaBias) {
    return new SelectiveScanArgs(u, delta, a, b, c, d, z, deltaBias, deltaSoftplus, initialState, out, lastState);
  }

  /** With softplus on delta, or not. */
  public SelectiveScanArgs withDeltaSoftplus(boolean deltaSoftplus) {
    return new SelectiveScanArgs(u, delta, a, b, c, d, z, deltaBias, deltaSoftplus, initialState, out, lastState);
  }

  /** With the state to begin with. */
  public SelectiveScanArgs withInitialState(Tensor initialState) {
    return new SelectiveScanArgs(u, delta, a, b, c, d, z, deltaBias, deltaSoftplus, initialState, out, lastState);
  }

  /** With memory for the result. */
  public SelectiveScanArgs withOut(Tensor out) {
    return new SelectiveScanArgs(u, delta, a, b, c, d, z, deltaBias, deltaSoftplus, initialState, out, lastState);
  }

  /** With memory for the state after the last element. */
  public SelectiveScanArgs withLastState(Tensor lastState) {
    return new SelectiveScanArgs(u, delta, a, b, c, d, z, deltaBias, deltaSoftplus, initialState, out, lastState);
  }
}
