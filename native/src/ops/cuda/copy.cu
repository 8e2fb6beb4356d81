#include "ops/cuda/copy.h"

#include <algorithm>
#include <cstdlib>

#include "ops/cuda/launch.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;
constexpr int kTileRows = 8;  // threads of a tile's block are kTile x kTileRows

// Dimensions in an order of the launcher's choice.
struct Plan {
  const void* x;
  void* out;
  int64_t shape[kCopyRank], from[kCopyRank], to[kCopyRank];
};

// Element after element of the last dimension; Index holds the number of all elements.
template <typename From, typename To, typename Index>
__global__ void __launch_bounds__(kThreads) copy_kernel(const __grid_constant__ Plan p, Index count) {
  const Index step = static_cast<Index>(gridDim.x) * kThreads;
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    int64_t from = 0, to = 0;
    Index rest = i;
#pragma unroll
    for (int d = kCopyRank - 1; d >= 0; --d) {
      const Index size = static_cast<Index>(p.shape[d]);
      if (size == 1) continue;
      const auto index = static_cast<int64_t>(rest % size);
      rest /= size;
      from += index * p.from[d];
      to += index * p.to[d];
    }
    static_cast<To*>(p.out)[to] = from_float<To>(to_float(static_cast<const From*>(p.x)[from]));
    if (count - i <= step) break;  // before i wraps around
  }
}

// x runs fastest along dimension 2, out along dimension 3: both are walked in their own order, through a tile.
template <typename From, typename To>
__global__ void __launch_bounds__(kTile* kTileRows) transpose_kernel(const __grid_constant__ Plan p, int64_t tiles) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t rows = (p.shape[2] + kTile - 1) / kTile, columns = (p.shape[3] + kTile - 1) / kTile;
  for (int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const int64_t column = i % columns * kTile, row = i / columns % rows * kTile, outer = i / columns / rows;
    const int64_t i1 = outer % p.shape[1], i0 = outer / p.shape[1];
    const From* x = static_cast<const From*>(p.x) + i0 * p.from[0] + i1 * p.from[1];
    To* out = static_cast<To*>(p.out) + i0 * p.to[0] + i1 * p.to[1];
    for (int k = threadIdx.y; k < kTile; k += kTileRows) {
      const int64_t r = row + threadIdx.x, c = column + k;
      if (r < p.shape[2] && c < p.shape[3]) tile[k][threadIdx.x] = to_float(x[r * p.from[2] + c * p.from[3]]);
    }
    __syncthreads();
    for (int k = threadIdx.y; k < kTile; k += kTileRows) {
      const int64_t r = row + k, c = column + threadIdx.x;
      if (r < p.shape[2] && c < p.shape[3]) out[r * p.to[2] + c * p.to[3]] = from_float<To>(tile[threadIdx.x][k]);
    }
    __syncthreads();
  }
}

int fastest(const int64_t (&shape)[kCopyRank], const int64_t (&strides)[kCopyRank]) {
  int best = kCopyRank - 1;
  for (int d = kCopyRank - 1; d >= 0; --d) {
    if (shape[d] == 1) continue;
    if (shape[best] == 1 || std::abs(strides[d]) < std::abs(strides[best])) best = d;
  }
  return best;
}

}  // namespace

void copy(const Array& x, const Array& out, cudaStream_t stream) {
  const int from = fastest(x.shape, x.strides), to = fastest(out.shape, out.strides);
  const bool transposed = from != to && x.strides[from] != 0;
  int order[kCopyRank], used = 0;
  for (int d = 0; d < kCopyRank; ++d) {
    if (d != to && !(transposed && d == from)) order[used++] = d;
  }
  if (transposed) order[used++] = from;
  order[used] = to;
  Plan plan = {x.data, out.data, {}, {}, {}};
  int64_t count = 1;
  for (int d = 0; d < kCopyRank; ++d) {
    plan.shape[d] = x.shape[order[d]];
    plan.from[d] = x.strides[order[d]];
    plan.to[d] = out.strides[order[d]];
    count *= plan.shape[d];
  }
  constexpr int64_t kMostBlocks = 1 << 20;
  with_element_type(x.dtype, [&]<typename From>(From) {
    with_element_type(out.dtype, [&]<typename To>(To) {
      if (transposed) {
        const int64_t tiles =
            plan.shape[0] * plan.shape[1] * ceil_div(plan.shape[2], kTile) * ceil_div(plan.shape[3], kTile);
        const auto grid = static_cast<unsigned>(std::min(tiles, kMostBlocks));
        transpose_kernel<From, To><<<grid, dim3(kTile, kTileRows), 0, stream>>>(plan, tiles);
        return;
      }
      const auto grid = static_cast<unsigned>(std::min(ceil_div(count, kThreads), kMostBlocks));
      if (count <= UINT32_MAX) {
        copy_kernel<From, To, uint32_t><<<grid, kThreads, 0, stream>>>(plan, static_cast<uint32_t>(count));
      } else {
        copy_kernel<From, To, uint64_t><<<grid, kThreads, 0, stream>>>(plan, static_cast<uint64_t>(count));
      }
    });
  });
  check_launch("copy");
}

}  // namespace m4j::cuda
