// The decode step's scan (Mamba-1) and state update (Mamba-2), with their gates.
#pragma once

#include "ops/cuda/decode_block.cuh"

namespace m4j::cuda {

// Of the lanes that share a row, for each of them.
__device__ inline float row_sum(float v) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
  return v;
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::receive_small(int layer) {
  const int size = small_size(a);
#pragma unroll 1
  for (int t = 0; t < tokens(); ++t) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
      Packet v;
      do {
        v = look(e.small + set + t * size + i);
      } while (!has_tag(v, static_cast<unsigned>(layer) + 1));
      at<float>(l.small)[t * small_stride(a) + i] = value_of(v);
    }
  }
  block_barrier();
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ auto DecodeStep<W, S, kMamba2, kTokens>::load_channel(const DecodeLayer& w, int channel) const -> Channel {
  Channel c{};
  const int E = a.d_inner, j = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = 8 * (j + i * kLanes);
    if (r >= a.dt_rank_padded) continue;
    const W* row = static_cast<const W*>(w.dt_proj) + static_cast<int64_t>(channel) * a.dt_rank_padded;
    const auto* from = reinterpret_cast<const uint4*>(row + r);
#pragma unroll
    for (int v = 0; v < static_cast<int>(sizeof(W)) / 2; ++v) c.dt_proj[i][v] = from[v];
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t n = j + i * kLanes;
    if (n >= a.d_state) continue;
    c.A[i] = w.A[n * E + channel];
  }
  c.D = w.D[channel];
  c.dt_bias = w.dt_bias[channel];
  return c;
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::load_states(S (&h)[2], int t, int layer, int channel) const {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int n = static_cast<int>(threadIdx.x) % kLanes + i * kLanes;
    if (n < a.d_state) h[i] = ssm_state(t, layer)[static_cast<int64_t>(n) * a.d_inner + channel];
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ float DecodeStep<W, S, kMamba2, kTokens>::norm_factor(const float* v, int size) const {
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < size; i += kWarp) squares = fmaf(v[i], v[i], squares);
  return rsqrtf(warp_sum(squares) / static_cast<float>(size) + a.mixer_norm_eps);
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::load_early(const DecodeLayer& w, int layer) {
  if (channels.count == 0) return;
  early_channel = load_channel(w, first_channel());
  load_states(early_states, 0, layer, first_channel());
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::scan(const DecodeLayer& w, int layer) {
  const int E = a.d_inner, N = a.d_state, R = a.dt_rank_padded;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int j = lane % kLanes, mine = lane / kLanes, last = channels.count - 1;
  Channel following = early_channel;
  S states[2] = {early_states[0], early_states[1]};
  receive_small(layer);
  for (int first = warp * kRowsOfWarp; first < channels.count; first += kWarps * kRowsOfWarp) {
    const bool own = first + mine < channels.count;
    const int row = min(first + mine, last), channel = channels.begin + row;
    const bool more = first + kThreads / kLanes < channels.count;
    const int next = channels.begin + min(first + kThreads / kLanes + mine, last);
    const Channel c = following;
    if (more) following = load_channel(w, next);
#pragma unroll 1
    for (int t = 0; t < tokens(); ++t) {
      const S h0[2] = {states[0], states[1]};
      if (t + 1 < tokens()) {
        load_states(states, t + 1, layer, channel);
      } else if (more) {
        load_states(states, 0, layer, next);
      }
      const float* dt = at<float>(l.small) + t * small_stride(a);
      const float *B = dt + R, *C = B + N;
      float dt_factor = 1, B_factor = 1, C_factor = 1;
      if (a.falcon) {
        dt_factor = norm_factor(dt, a.dt_rank);
        B_factor = norm_factor(B, N);
        C_factor = norm_factor(C, N);
      }
      float delta = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = 8 * (j + i * kLanes);
        if (r >= R) continue;
        const W* weight = reinterpret_cast<const W*>(c.dt_proj[i]);
        const float4 low = *reinterpret_cast<const float4*>(dt + r);
        const float4 high = *reinterpret_cast<const float4*>(dt + r + 4);
        const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int k = 0; k < 8; ++k) delta = fmaf(to_float(weight[k]), v[k], delta);
      }
      delta = softplus(fmaf(row_sum(delta), dt_factor, c.dt_bias));
      const float u = at<float>(l.u)[row << shift() | t], z = at<float>(l.z)[row << shift() | t];
      float y = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int n = j + i * kLanes;
        if (n >= N) continue;
        const float h = fmaf(exp2_fast(kLog2e * delta * c.A[i]), to_float(h0[i]), delta * (B[n] * B_factor) * u);
        if (own) ssm_state(t, layer)[static_cast<int64_t>(n) * E + channel] = to_state<S>(h);
        y = fmaf(C[n] * C_factor, h, y);
      }
      y = row_sum(y);
      hand_on(e.y + set, t * E + channel, fmaf(c.D, u, y) * silu(z), kLanes, own && j == 0, layer);
    }
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::ssd(const DecodeLayer& w, int layer) {
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
      y = row_sum(y);
      hand_on(e.y + set, t * E + channel, fmaf(h.D, x, y) * silu(z), kLanes, own && j == 0, layer);
    }
  }
}

}  // namespace m4j::cuda
