// Causal convolution: bound by memory. A thread walks the tokens of one tile for 16 bytes of channels or less, with
// the last inputs in registers.
#include "ops/cuda/chain.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kAhead = 4;  // tokens loaded before the first is used
// Tokens of a tile: at least the taps. Few, if there are too few tiles for the GPU otherwise.
constexpr int kTile = 32, kShortTile = 8, kEnoughBlocks = 256;
// In steps, where threads do little but wait, they take fewer channels until there are so many blocks. A few sequences
// gain nothing or lose (bench/NOTES-gpu.md).
constexpr int kEnoughBlocksOfSteps = 640, kFewSequences = 8;

template <typename T, int kCount>
__device__ void load_or_zero(const T* p, bool present, float (&to)[kCount]) {
  if (present) {
    load_floats(p, to);
  } else {
#pragma unroll
    for (float& v : to) v = 0;
  }
}

// kTaps >= d_conv: the oldest taps beyond d_conv have weight zero. Each thread owns kCount channels.
template <typename T, int kTaps, int kCount>
__global__ void __launch_bounds__(kThreads)
    conv1d_kernel(const __grid_constant__ Conv1dArgs a, unsigned row_blocks, unsigned tiles, int tile) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x % row_blocks) * kThreads + threadIdx.x) * kCount;
  const unsigned item = blockIdx.x / row_blocks;
  const Segment segment = a.segments.items[item / tiles];
  const int64_t begin = static_cast<int64_t>(item % tiles) * tile, end = min(begin + tile, segment.tokens);
  if (c >= a.channels || begin >= end) return;
  const T* x = static_cast<const T*>(a.x) + segment.row * a.ld_x + c;
  T* out = static_cast<T*>(a.out) + segment.row * a.ld_out + c;
  float* window = a.windows + segment.slot * a.slot_stride + c;
  const int64_t past = a.d_conv - 1;
  const int unused = kTaps - static_cast<int>(a.d_conv);

  float weight[kTaps][kCount], bias[kCount], inputs[kTaps][kCount];
#pragma unroll
  for (int k = 0; k < kTaps; ++k) load_or_zero(a.weight + (k - unused) * a.channels + c, k >= unused, weight[k]);
  load_or_zero(a.bias + c, a.bias != nullptr, bias);
  // Inputs before the tile, the newest last; inputs[0] is not among them.
#pragma unroll
  for (int k = 1; k < kTaps; ++k) {
    const int64_t t = begin + k - kTaps;
    if (t < 0) load_or_zero(window + (past + t) * a.channels, past + t >= 0, inputs[k]);
  }
  let_next_start();
  wait_for_previous();
#pragma unroll
  for (int k = 1; k < kTaps; ++k) {
    const int64_t t = begin + k - kTaps;
    if (t >= 0) load_floats(x + t * a.ld_x, inputs[k]);
  }
  if (begin == 0) {
    // The whole window is replaced here, where all of it has been read, from the segment's last inputs.
#pragma unroll
    for (int k = 1; k < kTaps; ++k) {
      if (k <= unused) continue;
      const int64_t t = segment.tokens + k - kTaps;
      float v[kCount];
      if (t >= 0) {
        load_floats(x + t * a.ld_x, v);
      } else {
#pragma unroll
        for (int j = 1; j < kTaps; ++j) {
          if (j != t + kTaps) continue;
#pragma unroll
          for (int i = 0; i < kCount; ++i) v[i] = inputs[j][i];
        }
      }
      store_floats(window + (past + k - kTaps) * a.channels, v);
    }
  }

  for (int64_t t0 = begin; t0 < end; t0 += kAhead) {
    Packed<T, kCount> next[kAhead] = {};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (t0 + i < end) next[i] = load_packed<kCount>(x + (t0 + i) * a.ld_x);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      float y[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
#pragma unroll
        for (int k = 0; k + 1 < kTaps; ++k) inputs[k][j] = inputs[k + 1][j];
        inputs[kTaps - 1][j] = next[i][j];
        y[j] = bias[j];
#pragma unroll
        for (int k = 0; k < kTaps; ++k) y[j] = fmaf(weight[k][j], inputs[k][j], y[j]);
        if (a.silu) y[j] = silu<T>(y[j]);
      }
      if (t0 + i < end) store_floats(out + (t0 + i) * a.ld_out, y);
    }
  }
}

template <typename T, int kCount>
void launch(const Conv1dArgs& a, cudaStream_t stream) {
  const unsigned row_blocks = static_cast<unsigned>(ceil_div(a.channels, kThreads * kCount));
  const auto blocks_of = [&](int tile) { return row_blocks * ceil_div(a.segments.longest, tile) * a.segments.count; };
  if constexpr (kCount * sizeof(T) > 4) {
    if (a.segments.longest == 1 && a.segments.count > kFewSequences && blocks_of(1) < kEnoughBlocksOfSteps) {
      return launch<T, kCount / 2>(a, stream);
    }
  }
  const int tile = blocks_of(kTile) < kEnoughBlocks ? kShortTile : kTile;
  const unsigned tiles = static_cast<unsigned>(ceil_div(a.segments.longest, tile));
  launch_kernel("conv1d", a.d_conv <= 4 ? conv1d_kernel<T, 4, kCount> : conv1d_kernel<T, 8, kCount>,
                {.blocks = blocks_of(tile), .threads = kThreads}, stream, a, row_blocks, tiles, tile);
}

}  // namespace

void conv1d(const Conv1dArgs& a, cudaStream_t stream) {
  with_element_type(a.dtype, [&]<typename T>(T) {
    constexpr int kCount = kVecOf16Bytes<T>;
    const bool vectors = a.channels % kCount == 0 && a.ld_x % kCount == 0 && a.ld_out % kCount == 0 &&
                         a.slot_stride % 4 == 0 && is_aligned(a.x, 16) && is_aligned(a.out, 16) &&
                         is_aligned(a.weight, 16) && is_aligned(a.bias, 16) && is_aligned(a.windows, 16);
    vectors ? launch<T, kCount>(a, stream) : launch<T, 1>(a, stream);
  });
}

}  // namespace m4j::cuda
