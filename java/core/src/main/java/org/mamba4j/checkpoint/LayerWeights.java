package org.mamba4j.checkpoint;

import org.mamba4j.Tensor;

/**
 * The tensors of one block, contiguous and aligned, in the element types of the checkpoint; null where a model has
 * none. Shapes: D d_model, E d_inner, N d_state, R dt_rank, H heads, G n_groups, K d_conv, C channels of the
 * convolution.
 *
 * @param norm [D]
 * @param inProj Mamba-1 [2E, D] rows x, z; Mamba-2 [2E + 2GN + H, D] rows z, x, B, C, dt
 * @param inProjBias [rows of inProj] or null
 * @param convWeight [C, K]
 * @param convBias [C] or null
 * @param xProj Mamba-1 [R + 2N, E] rows dt, B, C; null in Mamba-2
 * @param dtProj Mamba-1 [E, R]; null in Mamba-2
 * @param dtBias Mamba-1 [E], Mamba-2 [H]
 * @param aLog Mamba-1 [E, N], Mamba-2 [H]; A = -exp(aLog)
 * @param d Mamba-1 [E], Mamba-2 [H]
 * @param mixerNorm Mamba-2 [E], the gated norm; null in Mamba-1
 * @param outProj [D, E]
 * @param outProjBias [D] or null
 */
public record LayerWeights(
    Tensor norm,
    Tensor inProj,
    Tensor inProjBias,
    Tensor convWeight,
    Tensor convBias,
    Tensor xProj,
    Tensor dtProj,
    Tensor dtBias,
    Tensor aLog,
    Tensor d,
    Tensor mixerNorm,
    Tensor outProj,
    Tensor outProjBias) {}
