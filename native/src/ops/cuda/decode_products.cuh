// Matrix products of the decode step, with norms, convolution and residual sums.
#pragma once

#include "ops/cuda/decode_block.cuh"

namespace m4j::cuda {

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::product(int phase, const LayerWeights& w, int layer, bool read) {
  const Share share = share_of(phase);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, pass = pass_rows(phase);
  const bool inner = is_inner(phase);
  const Slice slice = slice_of(phase);
  const int shift_of_tiles = inner ? l.inner.shift : l.model.shift, tile = inner ? l.inner.rows : l.model.rows;
  const int row_bytes = (inner ? a.d_inner : a.d_model) * static_cast<int>(sizeof(W));
#pragma unroll 1
  for (int first = 0; first < share.count; first += pass) {
    const int count = min(pass, share.count - first);
    float squares[kTokens] = {};
    const bool anew = reads_anew(phase, first);
    if (anew) receive_vector(phase, w, layer, squares);
    if (is_normed(phase) && anew) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (t < tokens()) at<float>(l.parts_of_squares)[t * kThreads + static_cast<int>(threadIdx.x)] = squares[t];
      }
      leave_squares();
    }
    float* sums = at<float>(l.sums) + sums_buffer * kWarps * kSums + warp * kSums;
#pragma unroll 1
    for (int part = 0; part <= static_cast<int>(with_z(phase) && read); ++part) {
      multiply<W, (kTokens + 1) / 2>(ring, ring_at, slice, fragments(), stride(), tokens(), shift(), count, row_bytes,
                                     shift_of_tiles, tile, sums + (part * pass << shift()));
    }
    block_barrier();
    sums_buffer ^= 1;
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
template <int kPhase>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::finish_product(const LayerWeights& w, int layer, bool read) {
  const Share share = share_of(kPhase);
  constexpr int kRows = pass_rows(kPhase);
  constexpr bool kWithZ = with_z(kPhase);
  // Sums of a thread; with those of x come those of z.
  constexpr int kItems = kRows * (kWithZ ? 2 : 1) * (kTokens == 1 ? 1 : kMaxDecodeTokens) / kFinishers;
  static_assert(kItems > 0);
  const int t = finisher() & ((1 << shift()) - 1);
#pragma unroll 1
  for (int first = 0; first < share.count; first += kRows) {
    const int count = min(kRows, share.count - first);
    Operands operands[kItems];
    bool own[kItems], own_z[kItems];
    int mine[kItems];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int i = (finisher() + k * kFinishers) >> shift();
      own[k] = i < count && t < tokens();
      own_z[k] = kWithZ && read && i >= kRows && i < kRows + count && t < tokens();
      mine[k] = first + i - (own_z[k] ? kRows : 0);
      operands[k] = {};
      if (own[k]) operands[k] = load_operands<kPhase>(w, layer, share.begin + mine[k], t);
      if (own_z[k]) operands[k] = load_operands<kZ>(w, layer, share.begin + mine[k], t);
    }
    if (is_normed(kPhase) && reads_anew(kPhase, first)) add_squares();
    block_barrier();
    const float* sums = at<float>(l.sums) + sums_buffer * kWarps * kSums + finisher();
    float v[kItems] = {};
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int row = share.begin + mine[k];
      const float* from = sums + k * kFinishers;
      if (own[k]) v[k] = finish<kPhase>(layer, mine[k], row, t, total<kPhase>(from, t), operands[k]);
      if constexpr (kPhase == kOut) hand_on(e.x, t * a.d_model + row, v[k], 1 << shift(), own[k], layer);
      if (own_z[k]) finish<kZ>(layer, mine[k], row, t, total<kPhase>(from, t), operands[k]);
    }
    // In Mamba-1, multiply_small() waits for u.
    if (!kMamba2 && kPhase == kX && first + kRows >= share.count) block_barrier();
    if constexpr (kPhase == kX || (kMamba2 && kPhase == kSmall)) {
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const int c = conv_channel<kPhase>(share.begin + mine[k]);
        if (own[k] && c >= 0) shift_window(layer, c, t, v[k], operands[k]);
      }
    }
    sums_buffer ^= 1;
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::receive_vector(int phase, const LayerWeights& w, int layer,
                                                                   float (&squares)[kTokens]) {
  const bool stream = !is_inner(phase);  // the residual stream
  const float* norm = phase == kHead ? a.norm_f
                      : stream       ? w[&DecodeLayer::norm]
                      : kMamba2      ? w[&DecodeLayer::mixer_norm]
                                     : nullptr;
  if (layer == 0 && stream && phase != kHead) return receive_embedding(norm, model_slice, squares);
  receive<W, kPackets>(stream ? e.x : e.y, stream ? a.d_model : a.d_inner, tag_of(stream ? layer - 1 : layer), norm,
                       is_normed(phase) ? kScale : 1, slice_of(phase), tokens(), fragments(), stride(), squares);
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
__device__ void DecodeStep<W, S, kMamba2, kTokens>::add_squares() {
  const int lane = finisher() % kWarp;
  float* to = at<float>(l.squares) + finisher() / kWarp * kWarps * kMaxDecodeTokens;
  wait_for_squares();
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t >= tokens()) break;
    float mine = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float sum = warp_sum(at<float>(l.parts_of_squares)[t * kThreads + w * kWarp + lane]);
      if (lane == w) mine = sum;
    }
    if (lane < kWarps) to[lane * kMaxDecodeTokens + t] = mine;
  }
  __syncwarp();
}

template <typename W, typename S, bool kMamba2, int kTokens>
template <int kPhase>
__device__ float DecodeStep<W, S, kMamba2, kTokens>::total(const float* sums, int t) const {
  const float* squares = at<float>(l.squares) + finisher() / kWarp * kWarps * kMaxDecodeTokens + t;
  const int groups = kMamba2 && kPhase == kOut ? a.n_groups : 1;
  const auto part = [&](float sum, float square) {
    const float per = is_inner(kPhase) ? per_group : per_model;
    return is_normed(kPhase) ? sum * rsqrtf(fmaf(square, per, a.norm_eps)) * (1 / kScale) : sum;
  };
  float sum = 0, square = 0;
  if (groups == 1) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      sum += sums[w * kSums];
      if (is_normed(kPhase)) square += squares[w * kMaxDecodeTokens];
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
__device__ auto DecodeStep<W, S, kMamba2, kTokens>::load_operands(const LayerWeights& w, int layer, int row,
                                                                  int t) const -> Operands {
  Operands o{};
  if (kPhase == kOut && w.first.out_proj_bias != nullptr) o.bias = w[&DecodeLayer::out_proj_bias][row];
  if (!is_inner(kPhase) && kPhase != kHead && w.first.in_proj_bias != nullptr) {
    o.bias = w[&DecodeLayer::in_proj_bias][first_row(kPhase) + row];
  }
  const int c = conv_channel<kPhase>(row), C = conv_channels();
  if (c < 0) return o;
#pragma unroll
  for (int k = 0; k < kMaxConv; ++k) {
    if (k < a.d_conv) o.weight[k] = w[&DecodeLayer::conv_weight][k * C + c];
    if (k < a.d_conv - 1) o.past[k] = window(t, layer)[k * C + c];
  }
  if (w.first.conv_bias != nullptr) o.conv_bias = w[&DecodeLayer::conv_bias][c];
  return o;
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ float DecodeStep<W, S, kMamba2, kTokens>::convolve(float v, const Operands& o) const {
  float y = o.conv_bias;
#pragma unroll
  for (int k = 0; k < kMaxConv; ++k) {
    if (k >= a.d_conv) break;
    y = fmaf(o.weight[k], k < a.d_conv - 1 ? o.past[k < kMaxConv - 1 ? k : 0] : v, y);
  }
  return silu(y);
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::shift_window(int layer, int c, int t, float v,
                                                                 const Operands& o) const {
  float* past = window(t, layer) + c;
  const int C = conv_channels();
#pragma unroll
  for (int k = 1; k < kMaxConv; ++k) {
    if (k >= a.d_conv) break;
    past[(k - 1) * C] = k < a.d_conv - 1 ? o.past[k < kMaxConv - 1 ? k : 0] : v;
  }
}

// Returns what a convolution's window takes, or what out_proj hands on.
template <typename W, typename S, bool kMamba2, int kTokens>
template <int kPhase>
__device__ float DecodeStep<W, S, kMamba2, kTokens>::finish(int layer, int mine, int row, int t, float sum,
                                                            const Operands& o) {
  const float v = sum + o.bias;
  const int i = mine << shift() | t;
  const float y = conv_channel<kPhase>(row) >= 0 ? convolve(v, o) : v;
  if constexpr (kPhase == kHead) {
    a.logits[static_cast<int64_t>(t) * a.vocab_size + row] = v;
  } else if constexpr (kPhase == kZ) {
    at<float>(l.z)[i] = silu(v);
  } else if constexpr (kPhase == kX) {
    at<float>(l.u)[i] = y;
  } else if constexpr (kPhase == kSmall) {
    publish(e.small + t * small_size(a) + row, y, tag_of(layer));
  } else {
    return at<float>(l.residual)[i] += v;
  }
  return v;
}

template <typename W, typename S, bool kMamba2, int kTokens>
__device__ void DecodeStep<W, S, kMamba2, kTokens>::hand_on(Packet* vector, int k, float v, int distance, bool own,
                                                            int layer) const {
  const unsigned tag = tag_of(layer);
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
  constexpr int kRows = kWarp / kLanes;                    // channels at a time
  constexpr int kBatch = 5, kBatches = 8 / sizeof(W) / 2;  // loads of a lane, before u is there
  static_assert(kRows == kColumns && kBatches > 0);
  if (channels.count == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int size = small_size(a), pitch = row_pitch(size * static_cast<int>(sizeof(W)));
  const int mine = lane / kLanes, column = warp * kGroup + lane % kLanes * kColumns;
  float sums[kRounds][kTokens][kColumns] = {};
  bool meets = true;  // those who make u
#pragma unroll 1
  for (int first = 0; first < channels.count; first += l.x_proj.rows) {
    const int count = min(l.x_proj.rows, channels.count - first);
    ring.wait(ring_at);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      if (round > 0 && round * kWarps * kGroup >= size) break;
      // Lanes without columns or channels of their own compute others' for nothing, unless their whole warp has none.
      const bool works = (warp + round * kWarps) * kGroup < size;
      const int from = min(column + round * kWarps * kGroup, (size - 1) / kColumns * kColumns);
#pragma unroll 1
      for (int begin = 0; begin < count; begin += kRows * kBatch * kBatches) {
        Packed<W, kColumns> w[kBatches][kBatch];
#pragma unroll
        for (int batch = 0; batch < kBatches; ++batch) {
          if (!works || (batch > 0 && begin + batch * kBatch * kRows >= count)) break;
#pragma unroll
          for (int j = 0; j < kBatch; ++j) {
            const int i = min(begin + mine + (batch * kBatch + j) * kRows, count - 1);
            w[batch][j] = *reinterpret_cast<const Packed<W, kColumns>*>(ring.row(ring_at, i, pitch, l.x_proj.shift) +
                                                                        from * static_cast<int>(sizeof(W)));
          }
        }
        if (meets) block_barrier();
        meets = false;
#pragma unroll
        for (int batch = 0; batch < kBatches; ++batch) {
          if (!works || (batch > 0 && begin + batch * kBatch * kRows >= count)) break;
          const int i = begin + mine + batch * kBatch * kRows;
          const float* u = at<float>(l.u) + ((first + i) << shift());
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
            if (t >= tokens()) break;
#pragma unroll
            for (int j = 0; j < kBatch; ++j) {
              const float v = i + j * kRows < count ? u[(j * kRows) << shift() | t] : 0;
#pragma unroll
              for (int c = 0; c < kColumns; ++c) sums[round][t][c] = fmaf(w[batch][j][c], v, sums[round][t][c]);
            }
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
      if (row < size) publish(e.parts + (row * tokens() + t) * parts + part, sum, tag_of(layer));
    }
  }
}

}  // namespace m4j::cuda
