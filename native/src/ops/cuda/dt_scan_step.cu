// A block takes some channels of many tokens. Its weights and its first states are on their way before the kernel before
// has ended, which is x_proj, or a norm: one that leaves the memory idle (bench/NOTES-gpu.md).
#include "ops/cuda/dt_scan_step.h"

#include <algorithm>

#include "ops/cuda/chain.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/state_type.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kBlocksAtOnce = 2;  // of a multiprocessor
constexpr int kStates = 16;
constexpr int kChannels = 64, kPairs = kChannels / 2;  // of a block
constexpr int kTokens = 64;                            // of a block at most
constexpr int kTokensAtOnce = kThreads / kPairs;
// dt_proj's product: tiles of 16 rows and eight tokens, 32 columns at a time. A warp has one of the former and every
// kTokenWarps-th of the latter.
constexpr int kRows = 16, kRowTiles = kChannels / kRows, kTokenWarps = kWarps / kRowTiles;
constexpr int kColumns = 32, kMostColumns = 256;

// A lane's share of eight rows and kParts x 32 columns. Which of these is which column of a product does not matter if
// both sides agree: a lane takes eight neighbours.
template <typename T, int kParts>
struct Rows {
  uint4 words[kParts];

  // Zeros where there is no row or column.
  __device__ void load(const T* matrix, int64_t ld, int rows, int columns) {
    const int lane = threadIdx.x % kWarp, column = lane % 4 * 8;
    const T* from = matrix + lane / 4 * ld + column;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      words[i] = {};
      if (lane / 4 < rows && column + i * kColumns < columns) {
        words[i] = *reinterpret_cast<const uint4*>(from + i * kColumns);
      }
    }
  }
};

// d += (upper, lower) x^T: 16 rows, eight tokens
template <typename T, int kParts>
__device__ void multiply(const Rows<T, kParts>& upper, const Rows<T, kParts>& lower, const Rows<T, kParts>& x,
                         float (&d)[4]) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    mma<T>(d, {upper.words[i].x, lower.words[i].x, upper.words[i].y, lower.words[i].y}, x.words[i].x, x.words[i].y);
    mma<T>(d, {upper.words[i].z, lower.words[i].z, upper.words[i].w, lower.words[i].w}, x.words[i].z, x.words[i].w);
  }
}

// Rows [0, rows) of kCount elements, on their way to shared memory.
template <int kCount, typename T>
__device__ void copy_rows(T (*to)[kCount], const void* matrix, int64_t ld, int rows) {
  constexpr int kWidth = kVecOf16Bytes<T>, kVectors = kCount / kWidth;
  for (int i = threadIdx.x; i < rows * kVectors; i += kThreads) {
    const int row = i / kVectors, column = i % kVectors * kWidth;
    copy_async(shared_address(&to[row][column]), static_cast<const T*>(matrix) + row * ld + column, true);
  }
}

template <typename T, typename V, int kParts>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    dt_scan_step_kernel(const __grid_constant__ DtScanStepArgs args, unsigned row_blocks, int tokens) {
  const SelectiveScanArgs& a = args.scan;
  __shared__ alignas(16) float A[kStates][kChannels], deltas[kTokens][kChannels];
  __shared__ alignas(16) T us[kTokens][kChannels], gates[kTokens][kChannels];
  __shared__ alignas(16) T Bs[kTokens][kStates], Cs[kTokens][kStates];
  const int first_channel = static_cast<int>(blockIdx.x % row_blocks) * kChannels;
  const int64_t first = static_cast<int64_t>(blockIdx.x / row_blocks) * tokens;
  const int count = static_cast<int>(min(static_cast<int64_t>(tokens), a.segments.count - first));
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, R = static_cast<int>(args.dt_proj.columns);
  const int row = warp % kRowTiles * kRows + lane / 4;  // and the one eight further on: the lane's of a product
  // A thread has two channels of every kTokensAtOnce-th token.
  const int channel = threadIdx.x % kPairs * 2, c = first_channel + channel;
  int s = threadIdx.x / kPairs;

  const auto state_of = [&](int token) {
    return static_cast<V*>(a.states) + a.segments.items[first + token].slot * a.slot_stride + c;
  };
  Packed<V, 2> next[kStates];
  V* next_state = nullptr;
  const auto load_states = [&](int token) {
    next_state = state_of(token);
#pragma unroll
    for (int n = 0; n < kStates; ++n) next[n] = load_packed<2>(next_state + n * a.d_inner);
  };
  Rows<T, kParts> upper, lower;
  const T* weight = static_cast<const T*>(args.dt_proj.data) + int64_t{first_channel + warp % kRowTiles * kRows} * R;
  upper.load(weight, R, 8, R);
  lower.load(weight + 8 * R, R, 8, R);
  const float bias[2] = {a.delta_bias[first_channel + row], a.delta_bias[first_channel + row + 8]};
  if (s < count) load_states(s);
  for (int i = threadIdx.x; i < kStates * kChannels; i += kThreads) {
    A[i / kChannels][i % kChannels] = a.A[i / kChannels * a.d_inner + first_channel + i % kChannels] * kLog2e;
  }
  const auto D = load_packed<2>(a.D + c);
  if (s + kTokensAtOnce < count) {
    // The thread's next states, into the second-level cache: a line for each thread of a token.
    constexpr int kLines = kChannels * static_cast<int>(sizeof(V)) / 128;  // of a state
    const int n = channel / 2 / kLines;
    const V* line = state_of(s + kTokensAtOnce) - channel + n * a.d_inner + channel / 2 % kLines * (128 / sizeof(V));
    if (n < kStates) prefetch_line(line);
  }
  let_next_start();
  wait_for_previous();

  // What the first product waits for comes first, what the steps need behind it.
  Rows<T, kParts> x;
  const auto load_dt = [&](int token) {
    x.load(static_cast<const T*>(args.dt) + (first + token) * a.ld_bc, a.ld_bc, count - token, R);
  };
  constexpr bool kInRegisters = kParts <= 5;  // beside states and weights
  int token = 8 * (warp / kRowTiles);
  if (kInRegisters && token < count) load_dt(token);
  copy_rows(Bs, static_cast<const T*>(a.B) + first * a.ld_bc, a.ld_bc, count);
  copy_rows(Cs, static_cast<const T*>(a.C) + first * a.ld_bc, a.ld_bc, count);
  copy_rows(us, static_cast<const T*>(a.u) + first * a.ld_u + first_channel, a.ld_u, count);
  copy_rows(gates, static_cast<const T*>(a.z) + first * a.ld_z + first_channel, a.ld_z, count);
#pragma unroll 1
  while (token < count) {
    if (!kInRegisters) load_dt(token);
    float d[4] = {};
    multiply(upper, lower, x, d);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        deltas[token + lane % 4 * 2 + j][row + 8 * half] = softplus(d[2 * half + j] + bias[half]);
      }
    }
    token += 8 * kTokenWarps;
    if (kInRegisters && token < count) load_dt(token);
  }
  wait_for_copies();
  __syncthreads();

  for (; s < count; s += kTokensAtOnce) {
    Packed<V, 2> before[kStates];
#pragma unroll
    for (int n = 0; n < kStates; ++n) before[n] = next[n];
    V* const state = next_state;
    if (s + kTokensAtOnce < count) load_states(s + kTokensAtOnce);
    const auto u = load_packed<2>(&us[s][channel]), gate = load_packed<2>(&gates[s][channel]);
    const auto B = load_packed<kStates>(Bs[s]), C = load_packed<kStates>(Cs[s]);
    const auto delta = load_packed<2>(&deltas[s][channel]);
    const float input[2] = {delta[0] * u[0], delta[1] * u[1]};
    float y[2] = {};
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      const auto A_n = load_packed<2>(&A[n][channel]);
      Packed<V, 2> after = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float v = fmaf(exp2_fast(delta[j] * A_n[j]), before[n][j], input[j] * B[n]);
        y[j] = fmaf(C[n], v, y[j]);
        after.set(j, to_state<V>(v));
      }
      *reinterpret_cast<Packed<V, 2>*>(state + n * a.d_inner) = after;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) y[j] = fmaf(D[j], u[j], y[j]) * silu(gate[j]);
    store_floats(static_cast<T*>(a.out) + (first + s) * a.ld_out + c, y);
  }
}

template <typename T, typename V, int kParts>
void run(const DtScanStepArgs& a, cudaStream_t stream) {
  // As many blocks as the device runs at a time, or a whole number of times as many; none for fewer tokens than threads
  // take at once.
  const int64_t row_blocks = a.scan.d_inner / kChannels, count = a.scan.segments.count,
                at_once = std::max<int64_t>(kBlocksAtOnce * device_attribute(cudaDevAttrMultiProcessorCount) / row_blocks, 1),
                groups = std::min(ceil_div(count, at_once * kTokens) * at_once, ceil_div(count, kTokensAtOnce)),
                tokens = ceil_div(count, groups);
  launch_kernel("dt_scan_step", dt_scan_step_kernel<T, V, kParts>,
                {.blocks = row_blocks * ceil_div(count, tokens), .threads = kThreads}, stream, a,
                static_cast<unsigned>(row_blocks), static_cast<int>(tokens));
}

bool takes(const DtScanStepArgs& args) {
  const SelectiveScanArgs& a = args.scan;
  return a.dtype != DType::kF32 && args.dt_proj.dtype == a.dtype && args.dt_proj.columns <= kMostColumns &&
         a.d_state == kStates && a.n_groups == 1 && a.d_inner % kChannels == 0 && a.segments.longest == 1 && a.D && a.z &&
         a.delta_bias && a.delta_softplus && a.ld_bc % 8 == 0 && is_aligned(args.dt, 16) && is_aligned(a.B, 16) &&
         is_aligned(a.C, 16) && a.ld_u % 8 == 0 && a.ld_z % 8 == 0 && is_aligned(a.u, 16) && is_aligned(a.z, 16) &&
         a.slot_stride % 2 == 0 && a.ld_out % 2 == 0;
}

}  // namespace

bool dt_scan_step(const DtScanStepArgs& a, cudaStream_t stream) {
  if (!takes(a)) return false;
  with_half_type(a.scan.dtype, [&]<typename T>(T) {
    with_state_type(a.scan.state_type, [&]<typename V>(V) {
      if (a.dt_proj.columns <= 2 * kColumns) return run<T, V, 2>(a, stream);
      if (a.dt_proj.columns <= 5 * kColumns) return run<T, V, 5>(a, stream);
      run<T, V, kMostColumns / kColumns>(a, stream);
    });
  });
  return true;
}

}  // namespace m4j::cuda
