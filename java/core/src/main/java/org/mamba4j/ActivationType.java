package org.mamba4j;

/**
 * What activations may be rounded to on the CPU where they meet matrices of the same type. On a GPU they have the type
 * of 16-bit matrices in any case.
 */
public enum ActivationType {
  /** IEEE 754 binary32: not rounded. */
  F32,
  /**
   * bfloat16: activations that meet {@link WeightType#BF16} matrices are rounded to nearest where the processor
   * multiplies pairs of that type, with AVX-512 (instruction set {@code avx3_bf16}) or AMX ({@code amx}); prompts then
   * take about two thirds of the time. Sums are float32 as before. Elsewhere, and with other matrices, nothing changes.
   *
   * <p>@ERROR@
   */
  BF16
}
