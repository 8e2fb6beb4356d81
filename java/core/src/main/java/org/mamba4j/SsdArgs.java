package org.mamba4j;

/**
 * Arguments of {@link Ops#ssd}. B batch, L length, H heads, P headdim, N d_state, G groups. All tensors are F32 and
 * may be strided; on a GPU the activations may be F16 or BF16, see {@link Ops}. Immutable.
 *
 * @param x [B, L, H, P]
 * @param dt [B, L, H]
 * @param a [H], negative for a stable system
 * @param b [B, L, G, N], G divides H
 * @param c [B, L, G, N]
 * @param d [H], null for none
 * @param dtBias [H], null for none
 * @param dtSoftplus whether dt is softplus(dt + dtBias)
 * @param dtMin lower limit of dt
 * @param dtMax upper limit of dt, may be infinite
 * @param chunkSize tokens per chunk, 1 to 4096
 * @param initialState [B, H, P, N], null for zeros
 * @param out result [B, L, H, P], null to allocate it
 * @param lastState result [B, H, P, N], may be initialState; null if it is not wanted
 */
public record SsdArgs(
    Tensor x,
    Tensor dt,
    Tensor a,
    Tensor b,
    Tensor c,
    Tensor d,
    Tensor dtBias,
    boolean dtSoftplus,
    float dtMin,
    float dtMax,
    long chunkSize,
    Tensor initialState,
    Tensor out,
    Tensor lastState) {

  /** The required ones; chunks of 256, dt unlimited from 0 on; no D, bias, softplus or initial state. */
  public static SsdArgs of(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c) {
    return new SsdArgs(x, dt, a, b, c, null, null, false, 0, Float.POSITIVE_INFINITY, 256, null, null, null);
  }

  /** With the skip connection D. */
  public SsdArgs withD(Tensor d) {
    return new SsdArgs(x, dt, a, b, c, d, dtBias, dtSoftplus, dtMin, dtMax, chunkSize, initialState, out, lastState);
  }

  /** With a bias added to dt. */
  public SsdArgs withDtBias(Tensor dtBias) {
    return new SsdArgs(x, dt, a, b, c, d, dtBias, dtSoftplus, dtMin, dtMax, chunkSize, initialState, out, lastState);
  }

  /** With softplus on dt, or not. */
  public SsdArgs withDtSoftplus(boolean dtSoftplus) {
    return new SsdArgs(x, dt, a, b, c, d, dtBias, dtSoftplus, dtMin, dtMax, chunkSize, initialState, out, lastState);
  }

  /** With dt (after softplus) clamped to {@code dtMin ... dtMax}. */
  public SsdArgs withDtLimit(float dtMin, float dtMax) {
    return new SsdArgs(x, dt, a, b, c, d, dtBias, dtSoftplus, dtMin, dtMax, chunkSize, initialState, out, lastState);
  }

  /** With another number of tokens per chunk. */
  public SsdArgs withChunkSize(long chunkSize) {
    return new SsdArgs(x, dt, a, b, c, d, dtBias, dtSoftplus, dtMin, dtMax, chunkSize, initialState, out, lastState);
  }

  /** With the state to begin with. */
  public SsdArgs withInitialState(Tensor initialState) {
    return new SsdArgs(x, dt, a, b, c, d, dtBias, dtSoftplus, dtMin, dtMax, chunkSize, initialState, out, lastState);
  }

  /** With memory for the result. */
  public SsdArgs withOut(Tensor out) {
    return new SsdArgs(x, dt, a, b, c, d, dtBias, dtSoftplus, dtMin, dtMax, chunkSize, initialState, out, lastState);
  }

  /** With memory for the state after the last token. */
  public SsdArgs withLastState(Tensor lastState) {
    return new SsdArgs(x, dt, a, b, c, d, dtBias, dtSoftplus, dtMin, dtMax, chunkSize, initialState, out, lastState);
  }
}
