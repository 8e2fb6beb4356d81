// The decode step's scan (Mamba-1) and state update (Mamba-2), with their gates.
#pragma once

#include "ops/cuda/decode_block.cuh"

namespace m4j::cuda {

// Of the lanes that share a row, for each of them.
template <int kCount>
__device__ float row_sum(float v) {
#pragma unroll
  for (int lanes = kCount / 2; lanes > 0; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
  return v;
}

// 1 / root mean square of a part of what was received, by a whole warp: Falcon-Mamba's norm without weight. Others jump
// over a call in less time than over its code.
__device__ __noinline__ inline float norm_factor(const float* v, int size, float eps) {
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < size; i += kWarp) squares = fmaf(v[i], v[i], squares);
  return rsqrtf(warp_sum(squares) / static_cast<float>(size) + eps);
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::receive_small(int layer) {
  const int size = small_size(a);
#pragma unroll 1
  for (int t = 0; t < tokens(); ++t) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
      const int padding = !kMamba2 && i >= a.dt_rank_padded ? rank_padding(a) : 0;
      Packet v;
      do {
        v = look(e.small + t * size + i);
      } while (!has_tag(v, tag_of(layer)));
      at<float>(l.small)[t * small_stride(a) + padding + i] = value_of(v);
    }
  }
  block_barrier();
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ auto DecodeStep<W, S, kMamba2, kTokens>::load_channel(const LayerWeights& w, int channel) const -> Channel {
  Channel c;
#pragma unroll
  for (int i = 0; i < kScanStates; ++i) {
    c.A[i] = w[&DecodeLayer::A][static_cast<int64_t>(min(scan_state(i), a.d_state - 1)) * a.d_inner + channel];
  }
  c.D = w[&DecodeLayer::D][channel];
  c.dt_bias = w[&DecodeLayer::dt_bias][channel];
  return c;
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::load_states(S (&h)[kScanStates], int t, int layer,
                                                                int channel) const {
  const S* from = ssm_state(t, layer) + channel;
#pragma unroll
  for (int i = 0; i < kScanStates; ++i) {
    h[i] = from[static_cast<int64_t>(min(scan_state(i), a.d_state - 1)) * a.d_inner];
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::load_early(const LayerWeights& w, int layer) {
  if (channels.count == 0) return;
  const int mine = static_cast<int>(threadIdx.x) / kScanLanes;
  const int channel = channels.begin + min(mine, min(l.dt_proj.rows, channels.count) - 1);
  early_channel = load_channel(w, channel);
  load_states(early_states, 0, layer, channel);
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::scan(const LayerWeights& w, int layer, bool read) {
  const int E = a.d_inner, N = a.d_state, R = a.dt_rank_padded;
  const int j = static_cast<int>(threadIdx.x) % kScanLanes, mine = static_cast<int>(threadIdx.x) / kScanLanes;
  const int first_of_warp = mine - static_cast<int>(threadIdx.x) % kWarp / kScanLanes;
#pragma unroll 1
  for (int first = 0; first < channels.count; first += l.dt_proj.rows) {
    const int count = min(l.dt_proj.rows, channels.count - first);
    const bool own = mine < count;
    const int place = min(mine, count - 1), row = first + place, channel = channels.begin + row;
    const char* dt_proj = ring.row(ring_at, place, row_pitch(R * static_cast<int>(sizeof(W))), l.dt_proj.shift);
    const Channel c = first == 0 ? early_channel : load_channel(w, channel);
    ring.wait(ring_at);
    if (first == 0) receive_small(layer);
#pragma unroll 1
    for (int t = 0; t < tokens(); ++t) {
      if (first_of_warp >= count) break;
      S h0[kScanStates];
      if (first == 0 && t == 0) {
#pragma unroll
        for (int i = 0; i < kScanStates; ++i) h0[i] = early_states[i];
      } else {
        load_states(h0, t, layer, channel);
      }
      const float* dt = at<float>(l.small) + t * small_stride(a);
      const float *B = dt + R + rank_padding(a), *C = B + N;
      float dt_factor = 1, B_factor = 1, C_factor = 1;
      if (a.falcon) {
        dt_factor = norm_factor(dt, a.dt_rank, a.mixer_norm_eps);
        B_factor = norm_factor(B, N, a.mixer_norm_eps);
        C_factor = norm_factor(C, N, a.mixer_norm_eps);
      }
      // Lanes without columns of their own multiply some others with zeros.
      float sums[2] = {};
#pragma unroll 1
      for (int from = 8 * j; from < R + 8 * j; from += kScanRank) {
        Packed<W, 8> weight[2];
        float4 v[2][2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int r = from + k * kScanRank / 2;
          weight[k] = *reinterpret_cast<const Packed<W, 8>*>(dt_proj + min(r, R - 8) * static_cast<int>(sizeof(W)));
          v[k][0] = *reinterpret_cast<const float4*>(dt + r);
          v[k][1] = *reinterpret_cast<const float4*>(dt + r + 4);
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            sums[k] = fmaf(weight[k][4 * i], v[k][i].x, sums[k]);
            sums[k] = fmaf(weight[k][4 * i + 1], v[k][i].y, sums[k]);
            sums[k] = fmaf(weight[k][4 * i + 2], v[k][i].z, sums[k]);
            sums[k] = fmaf(weight[k][4 * i + 3], v[k][i].w, sums[k]);
          }
        }
      }
      const float delta = softplus(fmaf(row_sum<kScanLanes>(sums[0] + sums[1]), dt_factor, c.dt_bias));
      const float u = at<float>(l.u)[row << shift() | t];
      S* state = ssm_state(t, layer) + channel;
      float y = 0;
#pragma unroll
      for (int i = 0; i < kScanStates; ++i) {
        const int n = scan_state(i), m = min(n, N - 1);
        const float h = fmaf(exp2_fast(kLog2e * delta * c.A[i]), to_float(h0[i]), delta * (B[m] * B_factor) * u);
        if (own && n < N) state[static_cast<int64_t>(n) * E] = to_state<S>(h);
        const float part = C[m] * C_factor * h;
        y += n < N ? part : 0;
      }
      if (!read) continue;
      y = row_sum<kScanLanes>(y);
      const float z = at<float>(l.z)[row << shift() | t];
      hand_on(e.y, t * E + channel, fmaf(c.D, u, y) * z, kScanLanes, own && j == 0, layer);
    }
    ring.release(ring_at, count, l.dt_proj.shift);
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::ssd(const LayerWeights& w, int layer, bool read) {
  const int E = a.d_inner, N = a.d_state, GN = a.n_groups * N;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int j = lane % kLanes;
  const int mine = warp * kRowsOfWarp + lane / kLanes;
  const auto row_of = [&](int first) { return first + min(mine, min(l.state.rows, channels.count - first) - 1); };
  Head following = load_head(w, row_of(0));
  receive_small(layer);
#pragma unroll 1
  for (int t = 0; t < tokens(); ++t) {
#pragma unroll 1
    for (int first = 0; first < channels.count; first += l.state.rows) {
      const int count = min(l.state.rows, channels.count - first);
      const bool own = mine < count;
      const int row = row_of(first), channel = channels.begin + row;
      const Head h = following;
      if (channels.count > l.state.rows) {
        following = load_head(w, row_of(first + count < channels.count ? first + count : 0));
      }
      const float* small = at<float>(l.small) + t * small_stride(a);
      const float* B = small + h.B;
      const float* C = B + GN;
      const char* place = ring.row(ring_at, row - first, row_pitch(N * kStateBytes), l.state.shift);
      const auto* from = reinterpret_cast<const Packed<S, 4>*>(place);
      auto* state = reinterpret_cast<Packed<S, 4>*>(ssm_state(t, layer) + static_cast<int64_t>(channel) * N);
      const float x = at<float>(l.u)[row << shift() | t], z = at<float>(l.z)[row << shift() | t];
      const float dt = fminf(fmaxf(softplus(small[2 * GN + h.head] + h.dt_bias), a.dt_min), a.dt_max);
      const float decay = exp2_fast(kLog2e * dt * h.A), dtx = dt * x;
      float y = 0;
      ring.wait(ring_at);
#pragma unroll 2
      for (int n = j; n < N / 4; n += kLanes) {
        const Packed<S, 4> h0 = from[n];
        Packed<S, 4> rounded = {};
        float4 v;
        const float4 b = reinterpret_cast<const float4*>(B)[n], c = reinterpret_cast<const float4*>(C)[n];
        v.x = fmaf(decay, h0[0], dtx * b.x);
        v.y = fmaf(decay, h0[1], dtx * b.y);
        v.z = fmaf(decay, h0[2], dtx * b.z);
        v.w = fmaf(decay, h0[3], dtx * b.w);
        rounded.set(0, to_state<S>(v.x));
        rounded.set(1, to_state<S>(v.y));
        rounded.set(2, to_state<S>(v.z));
        rounded.set(3, to_state<S>(v.w));
        if (own) state[n] = rounded;
        y += v.x * c.x + v.y * c.y + v.z * c.z + v.w * c.w;
      }
      ring.release(ring_at, count, l.state.shift);
      if (!read) continue;
      y = row_sum<kLanes>(y);
      hand_on(e.y, t * E + channel, fmaf(h.D, x, y) * z, kLanes, own && j == 0, layer);
    }
  }
}

}  // namespace m4j::cuda
