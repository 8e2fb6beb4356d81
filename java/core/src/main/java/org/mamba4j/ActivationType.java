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
   * take five eighths of the time. Sums are float32 as before. Elsewhere, and with other matrices, nothing changes.
   *
   * <p>Logits of random models of the published 130m shapes move by 1.5e-2 to 1.8e-2 after 16 to 512 tokens (norm of
   * the difference, relative), the perplexity of the bundled model on Java sources by less than 0.01 %. Mamba-1 gives
   * the same bits however a sequence is split into calls, as with {@link #F32}; in Mamba-2, where such splits differ by
   * float32 rounding, a number may then be rounded up once and down the other time, which moves logits by up to 1e-2.
   */
  BF16
}
