// The chunked SSD in float32, by the products of ssd_chunk_half.cuh. Each number is split into two of the 11
// significant bits that tensor cores take; of the four products only that of the two small parts is left out, which
// keeps the precision of float32 sums.
#pragma once

#include "ops/cuda/mma.cuh"
#include "ops/cuda/ssd_chunk.cuh"

namespace m4j::cuda::ssd {

// With eight spare columns, reads of four rows by eight columns and of eight rows by four pairs meet no bank twice.
template <int kCols>
struct SingleTile {
  static constexpr int kStride = kCols + 8;
  float v[kChunk][kStride];

  // Zero past `rows` and `cols` of `from`.
  __device__ void load(const float* from, int64_t ld, int64_t rows, int64_t cols, bool vectors, int thread,
                       int threads) {
    for (int i = thread; i < kChunk * kCols / 4; i += threads) {
      const int row = i / (kCols / 4), col = i % (kCols / 4) * 4;
      const float* source = from + row * ld + col;
      if (vectors) {
        const bool valid = row < rows && col < cols;
        copy_async(shared_address(&v[row][col]), valid ? source : from, valid);
      } else {
        for (int k = 0; k < 4; ++k) v[row][col + k] = row < rows && col + k < cols ? source[k] : 0;
      }
    }
  }
  __device__ float2 pair(int row, int col) const { return *reinterpret_cast<const float2*>(&v[row][col]); }
};

constexpr int kSingleSlabs = 2;

template <int kN, Pass kPass>
struct SingleShared {
  static constexpr bool kOutputs = kPass == Pass::kOutputs;
  struct Nothing {};
  SingleTile<kN> B;
  SingleTile<64> X[kSingleSlabs];
  std::conditional_t<kOutputs, SingleTile<kN>, Nothing> C;
  std::conditional_t<kOutputs, SingleTile<64>, Nothing> M[kSingleSlabs];  // [j, i]
  Decays<float> decays[kSingleSlabs];
  Head heads[kSingleSlabs];
};

template <int kCount>
struct SplitFloats {
  uint32_t high[kCount], low[kCount];

  __device__ explicit SplitFloats(const float (&v)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(high[i]) : "f"(v[i]));
      asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(low[i]) : "f"(v[i] - __uint_as_float(high[i])));
    }
  }
};

// d += a b for a [16, 8]: (g, k), (g + 8, k), (g, k'), (g + 8, k') and b [8, 8]: (k, g), (k', g), where k and k' are
// any eight columns, the same in both.
__device__ inline void mma_once(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma(float (&d)[4], const SplitFloats<4>& a, const SplitFloats<2>& b) {
  mma_once(d, a.low, b.high);
  mma_once(d, a.high, b.low);
  mma_once(d, a.high, b.high);
}

// As compute_M of ssd_chunk_half.cuh.
template <int kN>
__device__ void compute_M(SingleShared<kN, Pass::kOutputs>& shared, int which, int warp, int lane) {
  const int g = lane / 4, t = lane % 4, j_block = which == 0 ? warp : 3 - warp;
  float s[4][4] = {};
#pragma unroll 2
  for (int n = 2 * t; n < kN; n += 8) {
    const float2 b0 = shared.B.pair(j_block * 16 + g, n), b1 = shared.B.pair(j_block * 16 + g + 8, n);
    const SplitFloats<4> b({b0.x, b1.x, b0.y, b1.y});
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      if (j_block > 2 * which + tile / 2) continue;
      const float2 c = shared.C.pair(which * 32 + tile * 8 + g, n);
      mma(s[tile], b, SplitFloats<2>({c.x, c.y}));
    }
  }
#pragma unroll
  for (int head = 0; head < kSingleSlabs; ++head) {
    const Decays<float>& d = shared.decays[head];
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      if (j_block > 2 * which + tile / 2) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int j = j_block * 16 + g + k / 2 * 8, i = which * 32 + tile * 8 + 2 * t + k % 2;
        const float m = j <= i ? s[tile][k] * d.weight(i, j) : 0;
        shared.M[head].v[j][i] = j == i ? m + shared.heads[head].D : m;
      }
    }
  }
}

template <int kN, Pass kPass>
__global__ void __launch_bounds__(kSingleSlabs * kSlabThreads, 1)
    ssd_single_kernel(const __grid_constant__ SsdArgs a, const __grid_constant__ Plan plan) {
  constexpr bool kOutputs = kPass == Pass::kOutputs;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<SingleShared<kN, kPass>*>(shared_memory);
  const int which = threadIdx.x / kSlabThreads, thread = threadIdx.x % kSlabThreads;
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  let_next_start();
  wait_for_previous();
  Work work;
  if (!work.find(a, plan, which)) return;
  if (!kOutputs && work.parts == 1) return;
  if (!kOutputs && work.part < work.parts - 1) skip_forgotten<float>(a, plan, work);

  SlabState<kN> state;
  if (!begin_state<kN, kPass>(state, a, plan, work, thread)) return;
  if (thread == 0) shared.heads[which].load(a, work);
  const int64_t col = work.head * a.headdim + work.first_row, bc = work.group * a.d_state;
  TimeSteps<float> time_steps(a, work, lane);
  const Decays<float>& decays = shared.decays[which];
  SingleTile<64>& X = shared.X[which];
  float total = 0;

  for (int64_t token = work.begin; token < work.end; token += kChunk) {
    const int64_t row = work.segment.row + token, left = work.end - token;
    const int rows = chunk_rows(left);
    __syncthreads();
    shared.B.load(static_cast<const float*>(a.B) + row * a.ld_bc + bc, a.ld_bc, left, a.d_state, plan.vectors,
                  threadIdx.x, kSingleSlabs * kSlabThreads);
    X.load(static_cast<const float*>(a.x) + row * a.ld_x + col, a.ld_x, left, a.headdim - work.first_row, plan.vectors,
           thread, kSlabThreads);
    if constexpr (kOutputs) {
      shared.C.load(static_cast<const float*>(a.C) + row * a.ld_bc + bc, a.ld_bc, left, a.d_state, plan.vectors,
                    threadIdx.x, kSingleSlabs * kSlabThreads);
    }
    if (warp == 0) {
      time_steps.load(a, rows, lane);
      time_steps.to_decays(shared.decays[which], shared.heads[which], a, rows, lane);
    }
    wait_for_copies();
    __syncthreads();

    float y[kChunk / 8][4] = {};
    if constexpr (kOutputs) {
      compute_M<kN>(shared, which, warp, lane);
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        const float(&h)[4] = state.h[n];
        const SplitFloats<4> split({h[0], h[2], h[1], h[3]});
#pragma unroll
        for (int i = 0; i < kChunk / 8; ++i) {
          const float2 c = shared.C.pair(i * 8 + g, n * 8 + 2 * t);
          mma(y[i], split, SplitFloats<2>({c.x, c.y}));
        }
      }
#pragma unroll
      for (int i = 0; i < kChunk / 8; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) y[i][k] *= decays.from_start[i * 8 + 2 * t + k % 2];
      }
      __syncthreads();
    }
    if (!kOutputs) total += decays.cum[kChunk - 1];
    state.scale(decays.from_start[kChunk - 1]);
#pragma unroll
    for (int k = 0; k < kChunk / 8; ++k) {
      const int j = k * 8 + t, p = warp * 16 + g;
      const float x[4] = {X.v[j][p], X.v[j][p + 8], X.v[j + 4][p], X.v[j + 4][p + 8]};
      if constexpr (kOutputs) {
        const SplitFloats<4> xt(x);
#pragma unroll
        for (int i = k / 2 * 2; i < kChunk / 8; ++i) {
          mma(y[i], xt, SplitFloats<2>({shared.M[which].v[j][i * 8 + g], shared.M[which].v[j + 4][i * 8 + g]}));
        }
      }
      const float w0 = decays.to_end[j], w1 = decays.to_end[j + 4];
      const SplitFloats<4> xt({x[0] * w0, x[1] * w0, x[2] * w1, x[3] * w1});
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        mma(state.h[n], xt, SplitFloats<2>({shared.B.v[j][n * 8 + g], shared.B.v[j + 4][n * 8 + g]}));
      }
    }
    if constexpr (kOutputs) {
      // The warp's 16 columns of X, which it alone reads, take the outputs on their way to memory.
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kChunk / 8; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) X.v[i * 8 + 2 * t + k % 2][warp * 16 + g + k / 2 * 8] = y[i][k];
      }
      __syncwarp();
      float* out = static_cast<float*>(a.out) + row * a.ld_out + col;
      for (int i = lane; i < kChunk * 16; i += 32) {
        const int p = warp * 16 + i % 16;
        const bool there = work.present && i / 16 < left && work.first_row + p < a.headdim;
        if (there) out[i / 16 * a.ld_out + p] = X.v[i / 16][p];
      }
    }
  }
  end_state<kN, kPass>(state, a, plan, total, which, thread);
}

}  // namespace m4j::cuda::ssd
