package org.mamba4j;

import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Element type that the matrices of a model have in memory: in_proj, x_proj, dt_proj, out_proj, the embedding and the
 * head. Norms, biases, convolution, A and D keep the type that the checkpoint stores.
 *
 * <p>Sums are float32 or exact, and the state is float32 unless {@link StateType} says otherwise. Activations are
 * float32 on the CPU, but have 16 bits where {@link #INT8} and {@link #INT4} are added in integers, on AMX, VNNI and
 * ARM's dot products, and may be rounded where they meet {@link #BF16} if {@link ActivationType} says so; on a GPU
 * they have the type of 16-bit matrices, and are bfloat16 with {@link #INT8} and {@link #INT4}.
 */
public enum WeightType {
  /** As the checkpoint stores them; they need not be read at load. */
  STORED,
  /** IEEE 754 binary32; what is stored in 16 bits is widened exactly. */
  F32,
  /** IEEE 754 binary16, rounded to nearest. Weights beyond its range, +-65504, are refused. */
  F16,
  /** bfloat16, rounded to nearest. */
  BF16,
  /**
   * {@link DType#Q8_0}: 8.5 bits a weight. dt_proj, and matrices whose rows are not a multiple of 32, stay as they are
   * stored.
   */
  INT8,
  /**
   * {@link DType#Q4_0}: 4.5 bits a weight. x_proj, from which step sizes, B and C of the scan come, is tiny and takes
   * {@link DType#Q8_0}. dt_proj, and matrices whose rows are not a multiple of 32, stay as they are stored.
   */
  INT4;

  private static final Pattern MATRIX =
      Pattern.compile("backbone\\.embeddings\\.weight|lm_head\\.weight|.*\\.(in_proj|x_proj|dt_proj|out_proj)\\.weight");

  /**
   * The element type in memory of a tensor that a checkpoint stores.
   *
   * @param name what Hugging Face calls the tensor
   * @throws IllegalArgumentException if the tensor is quantised, but not to this type
   */
  public DType of(String name, Tensor stored) {
    Matcher matrix = MATRIX.matcher(name);
    if (this == STORED || !matrix.matches()) {
      return stored.dtype();
    }
    String projection = String.valueOf(matrix.group(1));
    DType wanted =
        switch (this) {
          case F32 -> DType.F32;
          case F16 -> DType.F16;
          case BF16 -> DType.BF16;
          case INT4 -> projection.equals("x_proj") ? DType.Q8_0 : DType.Q4_0;
          default -> DType.Q8_0;
        };
    if (stored.dtype().isBlock()) {
      if (stored.dtype() == wanted || this == INT4 && stored.dtype() == DType.Q4_0) {
        return stored.dtype();
      }
      throw new IllegalArgumentException(
          "%s is quantised already, as %s, and cannot become %s; load it as it is stored, or the model it was made of"
              .formatted(name, stored.dtype(), wanted));
    }
    boolean quantise = wanted.isBlock();
    if (quantise && (projection.equals("dt_proj") || stored.dim(1) % wanted.blockSize() != 0)) {
      return stored.dtype();
    }
    return wanted;
  }
}
