package org.mamba4j;

/** Model families: what a block computes. */
public enum Family {
  /** Mamba: a selective scan with a diagonal A [d_inner, d_state]. */
  MAMBA1,
  /** Falcon-Mamba: Mamba with weightless RMSNorms on dt, B and C. */
  FALCON_MAMBA,
  /** Mamba-2: state space duality (SSD) with a scalar A per head and a gated RMSNorm. */
  MAMBA2
}
