// The decode step's warps that do not multiply: one fetches weights, one adds up what x_proj's columns gave.
#pragma once

#include "ops/cuda/decode_block.cuh"

namespace m4j::cuda {

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::fetch() {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 1
  for (int layer = 0; layer <= a.n_layer; ++layer) {
    const bool last = layer == a.n_layer;
    if (last && a.logits == nullptr) break;
    if (!last) {
      if (layer + 1 < a.n_layer && static_cast<int>(blockIdx.x) == layer % static_cast<int>(gridDim.x)) {
        prefetch_vectors(layers[layer + 1], lane);
      }
      prefetch_channels(layers[layer], layer, lane);
    }
#pragma unroll 1
    for (int phase = last ? kHead : 0; phase <= (last ? kHead : kOut); ++phase) {
      if (!kMamba2 || phase != kX) {
        // What Mamba-1 reads between x and z is little.
        const bool more = !kMamba2 && (phase == kSmall || phase == kZ);
        fetch_rows(layer, phase, 0, at<Product>(l.products)[phase].count, more);
      } else {
        fetch_x_z_states(layer);
        phase = kZ;
      }
    }
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::fetch_x_z_states(int layer) {
#pragma unroll 1
  for (int first = 0; first < channels.count; first += kPassRows<kX>) {
    const int count = min(kPassRows<kX>, channels.count - first);
    fetch_rows(layer, kX, first, count);
    fetch_rows(layer, kZ, first, count);
  }
#pragma unroll 1
  for (int t = 0; t < tokens(); ++t) {
    const S* from = ssm_state(t, layer) + static_cast<int64_t>(channels.begin) * a.d_state;
    ring.fetch(ring_at, ring_free, reinterpret_cast<const char*>(from), kStateBytes * a.d_state, channels.count,
               l.state);
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::fetch_rows(int layer, int phase, int first, int count, int more) {
  const Product& p = at<Product>(l.products)[phase];
  const int row_bytes = p.columns * static_cast<int>(sizeof(W));
  const char* place = reinterpret_cast<const char*>(layers + layer) + p.matrix;
  const char* matrix =
      phase == kHead ? static_cast<const char*>(a.lm_head) : *reinterpret_cast<const char* const*>(place);
  const char* from = matrix + static_cast<int64_t>(p.first + p.begin + first) * row_bytes;
  ring.fetch(ring_at, ring_free, from, row_bytes, count, p.tiles, more);
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::add() {
  constexpr int kRows = kTokens == 1 ? 2 : 1, kSumsAtOnce = kRows * kTokens, kBatch = 5;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, parts = part_count(a, static_cast<int>(gridDim.x));
#pragma unroll 1
  for (int layer = 0; layer < a.n_layer; ++layer) {
    const auto tag = static_cast<unsigned>(layer) + 1;
#pragma unroll 1
    for (int first = 0; first < smalls.count; first += kRows) {
      const int count = min(kSumsAtOnce, (smalls.count - first) * tokens());
      const Packet* from = e.parts + set + (smalls.begin + first) * tokens() * parts;
      float sums[kSumsAtOnce] = {};
#pragma unroll 1
      for (int begin = lane; begin - lane < parts; begin += kBatch * kWarp) {
        Packet v[kSumsAtOnce][kBatch];
#pragma unroll
        for (auto& row : v) {
#pragma unroll
          for (Packet& one : row) one = packet(0, tag - 1);
        }
        for (bool missing = true; __any_sync(~0u, missing);) {
          missing = false;
#pragma unroll
          for (int i = 0; i < kSumsAtOnce; ++i) {
#pragma unroll
            for (int j = 0; j < kBatch; ++j) {
              const int part = begin + j * kWarp;
              if (i < count && part < parts && !has_tag(v[i][j], tag)) v[i][j] = look(from + i * parts + part);
            }
          }
#pragma unroll
          for (int i = 0; i < kSumsAtOnce; ++i) {
#pragma unroll
            for (int j = 0; j < kBatch; ++j) {
              missing |= i < count && begin + j * kWarp < parts && !has_tag(v[i][j], tag);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kSumsAtOnce; ++i) {
#pragma unroll
          for (const Packet one : v[i]) sums[i] += value_of(one);
        }
      }
#pragma unroll
      for (int i = 0; i < kSumsAtOnce; ++i) {
        if (i >= count) break;
        const float sum = warp_sum(sums[i]);
        const int row = smalls.begin + first + i / kTokens, t = i % kTokens;
        if (lane == i) publish(e.small + set + t * small_size(a) + row, sum, tag);
      }
    }
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::prefetch_vectors(const DecodeLayer& w, int lane) const {
  const int C = conv_channels(), heads = kMamba2 ? a.n_heads : a.d_inner;
  const auto floats = [&](int turn, const float* p, int n) {
    if (lane == turn && p != nullptr) prefetch(p, n * 4);
  };
  floats(0, w.norm, a.d_model);
  floats(1, w.conv_weight, a.d_conv * C);
  floats(2, w.conv_bias, C);
  floats(3, w.dt_bias, heads);
  floats(4, w.D, heads);
  floats(5, w.in_proj_bias, a.in_proj_rows);
  floats(6, w.out_proj_bias, a.d_model);
  if (kMamba2) {
    floats(7, w.mixer_norm, a.d_inner);
    floats(8, w.A, heads);
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::prefetch_channels(const DecodeLayer& w, int layer, int lane) const {
  if (kMamba2 && lane < a.tokens * (a.d_conv - 1)) {
    const int C = conv_channels(), begin = min(a.d_inner + smalls.begin, C);
    prefetch(window(lane % a.tokens, layer) + lane / a.tokens * C + begin, min(smalls.count, C - begin) * 4);
  }
  if (channels.count == 0) return;
  const int C = conv_channels(), begin = channels.begin, bytes = channels.count * 4;
#pragma unroll 1
  for (int i = lane; i < a.tokens * (a.d_conv - 1); i += kWarp) {
    prefetch(window(i % a.tokens, layer) + i / a.tokens * C + begin, bytes);
  }
  if constexpr (!kMamba2) {
#pragma unroll 1
    for (int i = lane; i < a.tokens * a.d_state; i += kWarp) {
      prefetch(ssm_state(i % a.tokens, layer) + static_cast<int64_t>(i / a.tokens) * a.d_inner + begin,
               channels.count * kStateBytes);
    }
#pragma unroll 1
    for (int n = lane; n < a.d_state; n += kWarp) {
      prefetch(w.A + static_cast<int64_t>(n) * a.d_inner + begin, bytes);
    }
    if (lane == 0) {
      const int64_t row_bytes = a.dt_rank_padded * static_cast<int64_t>(sizeof(W));
      prefetch(static_cast<const char*>(w.dt_proj) + begin * row_bytes, channels.count * row_bytes);
    }
  }
}

}  // namespace m4j::cuda
