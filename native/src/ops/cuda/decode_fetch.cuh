// The decode step's warps that do not multiply: one fetches weights, one adds up what x_proj's columns gave.
#pragma once

#include "ops/cuda/decode_block.cuh"

namespace m4j::cuda {

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::fetch() {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane < kProducts) at<Product>(l.products)[lane] = describe(lane);
  __syncwarp();
#pragma unroll 1
  for (int layer = 0; layer <= a.n_layer; ++layer) {
    const bool last = layer == a.n_layer, read = is_read(layer);
    if (last && a.logits == nullptr) break;
    if (!last) {
      if (layer + 1 < a.n_layer && static_cast<int>(blockIdx.x) == layer % static_cast<int>(gridDim.x)) {
        prefetch_vectors(weights(layer + 1), lane);
      }
      prefetch_channels(weights(layer), layer, lane);
    }
#pragma unroll 1
    for (int phase = last ? kHead : 0; phase <= (last ? kHead : kOut); ++phase) {
      if (!read && (phase == kZ || phase == kOut)) continue;
      if (!kMamba2 || phase != kX) {
        // What Mamba-1 reads between x and z, and between z and out_proj, is little.
        const bool more = !kMamba2 && phase != kX && phase != kDt;
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
  for (int first = 0; first < channels.count; first += pass_rows(kX)) {
    const int count = min(pass_rows(kX), channels.count - first);
    fetch_rows(layer, kX, first, count);
    if (is_read(layer)) fetch_rows(layer, kZ, first, count);
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
  const char* matrix = static_cast<const char*>(p.matrix) + layer * p.layer_bytes;
  const char* from = matrix + static_cast<int64_t>(p.first + p.begin + first) * row_bytes;
  ring.fetch(ring_at, ring_free, from, row_bytes, count, p.tiles, more);
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::add() {
  constexpr int kRows = kTokens == 1 ? 2 : 1, kSumsAtOnce = kRows * kTokens, kBatch = 5;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, parts = part_count(a, static_cast<int>(gridDim.x));
#pragma unroll 1
  for (int layer = 0; layer < a.n_layer; ++layer) {
    const unsigned tag = tag_of(layer);
#pragma unroll 1
    for (int first = 0; first < smalls.count; first += kRows) {
      const int count = min(kRows, smalls.count - first) * tokens();
      const Packet* from = e.parts + (smalls.begin + first) * tokens() * parts;
      float sums[kSumsAtOnce] = {};
#pragma unroll 1
      for (int begin = lane; begin - lane < parts; begin += kBatch * kWarp) {
        // Parts that there are not count as there, and as zeros.
        Packet v[kSumsAtOnce][kBatch];
#pragma unroll
        for (int i = 0; i < kSumsAtOnce; ++i) {
#pragma unroll
          for (int j = 0; j < kBatch; ++j) {
            const bool own = i < count && begin + j * kWarp < parts;
            v[i][j] = packet(0, own ? tag - 1 : tag);
          }
        }
        for (bool missing = true; __any_sync(~0u, missing);) {
#pragma unroll
          for (int i = 0; i < kSumsAtOnce; ++i) {
#pragma unroll
            for (int j = 0; j < kBatch; ++j) {
              if (!has_tag(v[i][j], tag)) v[i][j] = look(from + i * parts + begin + j * kWarp);
            }
          }
          missing = false;
#pragma unroll
          for (const auto& row : v) {
#pragma unroll
            for (const Packet one : row) missing |= !has_tag(one, tag);
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
        if (lane == i) publish(e.small + t * small_size(a) + row, sum, tag);
      }
    }
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::prefetch_vectors(const LayerWeights& w, int lane) const {
  const int C = conv_channels(), heads = kMamba2 ? a.n_heads : a.d_inner;
  const auto floats = [&](int turn, const float* DecodeLayer::*vector, int n) {
    if (lane == turn && w.first.*vector != nullptr) prefetch(w[vector], n * 4);
  };
  floats(0, &DecodeLayer::norm, a.d_model);
  floats(1, &DecodeLayer::conv_weight, a.d_conv * C);
  floats(2, &DecodeLayer::conv_bias, C);
  floats(3, &DecodeLayer::dt_bias, heads);
  floats(4, &DecodeLayer::D, heads);
  floats(5, &DecodeLayer::in_proj_bias, a.in_proj_rows);
  floats(6, &DecodeLayer::out_proj_bias, a.d_model);
  if (kMamba2) {
    floats(7, &DecodeLayer::mixer_norm, a.d_inner);
    floats(8, &DecodeLayer::A, heads);
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::prefetch_channels(const LayerWeights& w, int layer,
                                                                                      int lane) const {
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
      prefetch(w[&DecodeLayer::A] + static_cast<int64_t>(n) * a.d_inner + begin, bytes);
    }
  }
}

}  // namespace m4j::cuda
