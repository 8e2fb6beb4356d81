// Matrix products of the decode step, with norms, convolution and residual sums.
#pragma once

#include "ops/cuda/decode_block.cuh"

namespace m4j::cuda {

template <typename W, typename S, bool kMamba2, int kTokens>
template <int kPhase>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::product(const DecodeLayer& w, int layer) {
  const Share share = kPhase == kOut     ? outputs
                      : kPhase == kSmall ? smalls
                      : kPhase == kHead  ? Share(a.vocab_size)
                                         : channels;
  if (share.count == 0) return;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp, t = tid & ((1 << shift()) - 1);
  const Slice& slice = kInner<kPhase> ? inner_slice : model_slice;
  const Tiles& tiles = kInner<kPhase> ? l.inner : l.model;
  const int row_bytes = (kInner<kPhase> ? a.d_inner : a.d_model) * static_cast<int>(sizeof(W));
  constexpr int kRows = kPassRows<kPhase>;
#pragma unroll 1
  for (int first = 0; first < share.count; first += kRows) {
    const int count = min(kRows, share.count - first), i = tid >> shift();
    const bool own = i < count && t < tokens();
    const bool own_z = kWithZ<kPhase> && i >= kRows && i < kRows + count && t < tokens();
    const int mine = first + i - (own_z ? kRows : 0), row = share.begin + mine;
    Operands operands{}, operands_z{};
    if (kWithZ<kPhase> && first == 0) {
      operands = early;
    } else if (own) {
      operands = load_operands<kPhase>(w, layer, row, t);
    }
    if (own_z) operands_z = load_operands<kZ>(w, layer, row, t);
    float squares[kTokens] = {};
    // x and z read the same vector, and so do B, C, dt of Mamba-2.
    const bool fresh = first == 0 && kPhase != kZ && !(kWithZ<kPhase> && smalls.count > 0);
    if (fresh) receive_vector<kPhase>(w, layer, squares);
    float* sums = at<float>(l.sums) + sums_buffer * kWarps * kSums;
#pragma unroll 1
    for (int part = 0; part <= static_cast<int>(kWithZ<kPhase>); ++part) {
      multiply<W, (kTokens + 1) / 2>(ring, ring_at, slice, fragments(), stride(), tokens(), shift(), count, row_bytes,
                                     tiles.shift, tiles.rows, sums + warp * kSums + (part * kRows << shift()));
    }
    if (kNormed<kPhase> && fresh) {
      buffer ^= 1;
      store_squares(squares);
    }
    block_barrier();
    float v = 0;
    if (own) v = finish<kPhase>(layer, mine, row, t, total<kPhase>(sums + tid, t), operands);
    if constexpr (kPhase == kOut) hand_on(e.x + set, t * a.d_model + row, v, 1 << shift(), own, layer);
    if (own_z) finish<kZ>(layer, mine, row, t, total<kPhase>(sums + tid, t), operands_z);
    sums_buffer ^= 1;
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
template <int kPhase>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::receive_vector(const DecodeLayer& w, int layer,
                                                                   float (&squares)[kTokens]) {
  constexpr bool kStream = !kInner<kPhase>;  // the residual stream
  const float* norm = kPhase == kHead ? a.norm_f : kStream ? w.norm : kMamba2 ? w.mixer_norm : nullptr;
  if (kStream && kPhase != kHead && layer == 0) return receive_embedding(norm, model_slice, squares);
  receive<W, kPackets>((kStream ? e.x : e.y) + set, kStream ? a.d_model : a.d_inner,
                       static_cast<unsigned>(kStream ? layer : layer + 1), norm, kNormed<kPhase> ? kScale : 1,
                       kStream ? model_slice : inner_slice, tokens(), fragments(), stride(), squares);
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::receive_embedding(const float* norm, const Slice& slice,
                                                                      float (&squares)[kTokens]) {
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t >= tokens()) break;
    const W* from = embedding(t) + slice.begin;
#pragma unroll 1
    for (int k = 2 * (static_cast<int>(threadIdx.x) % kWarp); k < slice.size; k += 2 * kWarp) {
      const float v0 = to_float(from[k]), v1 = to_float(from[k + 1]);
      const float* g = norm + slice.begin + k;
      squares[t] = fmaf(v0, v0, fmaf(v1, v1, squares[t]));
      put_fragment<W>(fragments() + t * stride(), k, v0 * g[0] * kScale, v1 * g[1] * kScale);
    }
  }
  __syncwarp();
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::store_squares(const float (&squares)[kTokens]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t >= tokens()) break;
    const float sum = warp_sum(squares[t]);
    if (lane == 0) at<float>(l.squares)[(buffer * kWarps + warp) * kMaxDecodeTokens + t] = sum;
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
template <int kPhase>
__device__ float DecodeStep<W, S, kMamba2, kTokens>::total(const float* sums, int t) const {
  const float* squares = at<float>(l.squares) + buffer * kWarps * kMaxDecodeTokens + t;
  const int groups = kMamba2 && kPhase == kOut ? a.n_groups : 1;
  const auto part = [&](float sum, float square) {
    const float per = kInner<kPhase> ? per_group : per_model;
    return kNormed<kPhase> ? sum * rsqrtf(fmaf(square, per, a.norm_eps)) * (1 / kScale) : sum;
  };
  float sum = 0, square = 0;
  if (groups == 1) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      sum += sums[w * kSums];
      if (kNormed<kPhase>) square += squares[w * kMaxDecodeTokens];
    }
    return part(sum, square);
  }
  float result = 0;
#pragma unroll 1
  for (int w = 0; w < groups * warps_of_group(groups); ++w) {
    sum += sums[w * kSums];
    square += squares[w * kMaxDecodeTokens];
    if ((w + 1) % warps_of_group(groups) != 0) continue;
    result += part(sum, square);
    sum = square = 0;
  }
  return result;
}

template <typename W, typename S, bool kMamba2, int kTokens>
template <int kPhase>
__device__ auto DecodeStep<W, S, kMamba2, kTokens>::load_operands(const DecodeLayer& w, int layer, int row, int t) const
    -> Operands {
  Operands o{};
  if (kPhase == kOut && w.out_proj_bias != nullptr) o.bias = w.out_proj_bias[row];
  if (!kInner<kPhase> && kPhase != kHead && w.in_proj_bias != nullptr) {
    o.bias = w.in_proj_bias[first_row(kPhase) + row];
  }
  const int c = conv_channel<kPhase>(row), C = conv_channels();
  if (c < 0) return o;
#pragma unroll
  for (int k = 0; k < kMaxConv; ++k) {
    if (k < a.d_conv) o.weight[k] = w.conv_weight[k * C + c];
    if (k < a.d_conv - 1) o.past[k] = window(t, layer)[k * C + c];
  }
  if (w.conv_bias != nullptr) o.conv_bias = w.conv_bias[c];
  return o;
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ float DecodeStep<W, S, kMamba2, kTokens>::convolve(int layer, int c, int t, float v,
                                                              const Operands& o) const {
  float* past = window(t, layer);
  const int C = conv_channels();
  float y = o.conv_bias;
#pragma unroll
  for (int k = 0; k < kMaxConv; ++k) {
    if (k >= a.d_conv) break;
    const float x = k < a.d_conv - 1 ? o.past[k < kMaxConv - 1 ? k : 0] : v;
    y = fmaf(o.weight[k], x, y);
    if (k > 0) past[(k - 1) * C + c] = x;
  }
  return silu(y);
}

template <typename W, typename S, bool kMamba2, int kTokens>
template <int kPhase>
__device__ float DecodeStep<W, S, kMamba2, kTokens>::finish(int layer, int mine, int row, int t, float sum,
                                                            const Operands& o) {
  float v = sum + o.bias;
  const int i = mine << shift() | t, c = conv_channel<kPhase>(row);
  const auto tag = static_cast<unsigned>(layer) + 1;
  if (c >= 0) v = convolve(layer, c, t, v, o);
  if constexpr (kPhase == kHead) {
    a.logits[static_cast<int64_t>(t) * a.vocab_size + row] = v;
  } else if constexpr (kPhase == kZ) {
    at<float>(l.z)[i] = v;
  } else if constexpr (kPhase == kX) {
    at<float>(l.u)[i] = v;
  } else if constexpr (kPhase == kSmall) {
    publish(e.small + set + t * small_size(a) + row, v, tag);
  } else {
    v += at<float>(l.residual)[i];
    at<float>(l.residual)[i] = v;
  }
  return v;
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::hand_on(Packet* vector, int k, float v, int distance, bool own,
                                                            int layer) const {
  const auto tag = static_cast<unsigned>(layer) + 1;
  if constexpr (kMamba2) {
    const float next = __shfl_down_sync(~0u, v, distance);
    if (own && k % 2 == 0) publish<kPackets>(vector, k, v, next, tag);
  } else if (own) {
    publish(vector + k, v, tag);
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::multiply_small(int layer) {
  constexpr int kColumns = 4, kGroup = kLanes * kColumns;  // sums of a lane and of a warp
  constexpr int kRounds = (kMaxRank + 2 * kMaxScanState + kWarps * kGroup - 1) / (kWarps * kGroup);
  static_assert(kWarp / kLanes == kColumns);
  if (channels.count == 0) return;
  block_barrier();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int size = small_size(a), pitch = row_pitch(size * static_cast<int>(sizeof(W)));
  const int mine = lane / kLanes, column = warp * kGroup + lane % kLanes * kColumns, stage_rows = 1 << l.x_proj.shift;
  float sums[kRounds][kTokens][kColumns] = {};
#pragma unroll 1
  for (int first = 0; first < channels.count; first += l.x_proj.rows) {
    const int count = min(l.x_proj.rows, channels.count - first);
    ring.wait(ring_at);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int from = column + round * kWarps * kGroup;
      if (from >= size) break;
#pragma unroll 1
      for (int begin = 0; begin < count; begin += stage_rows) {
        const char* rows = ring.row(ring_at, begin, pitch, l.x_proj.shift) + from * static_cast<int>(sizeof(W));
        const float* u = at<float>(l.u) + ((first + begin) << shift());
        const int end = min(stage_rows, count - begin);
#pragma unroll 4
        for (int i = mine; i < end; i += kWarp / kLanes) {
          const Packed<W, kColumns> w = *reinterpret_cast<const Packed<W, kColumns>*>(rows + i * pitch);
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
            if (t >= tokens()) break;
            const float v = u[i << shift() | t];
#pragma unroll
            for (int c = 0; c < kColumns; ++c) sums[round][t][c] = fmaf(w[c], v, sums[round][t][c]);
          }
        }
      }
    }
    ring.release(ring_at, count, l.x_proj.shift);
  }
  // A part is known by the block's number, or that of its channel where only some have one.
  const int parts = part_count(a, static_cast<int>(gridDim.x));
  const int part = min(static_cast<int>(blockIdx.x), channels.begin);
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int from = warp * kGroup + round * kWarps * kGroup;
    if (from >= size) break;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= tokens()) break;
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        float v = sums[round][t][c];
        v += __shfl_xor_sync(~0u, v, kLanes);
        v += __shfl_xor_sync(~0u, v, 2 * kLanes);
        if (mine == c) sum = v;
      }
      const int row = from + lane % kLanes * kColumns + mine;
      if (row < size) {
        publish(e.parts + set + (row * tokens() + t) * parts + part, sum, static_cast<unsigned>(layer) + 1);
      }
    }
  }
}

}  // namespace m4j::cuda
