// Weights that stream through shared memory while a kernel computes with them, and the products of their rows with
// activations that lie there too.
#pragma once

#include <cstdint>

#include "ops/cuda/launch.cuh"

namespace m4j::cuda {

constexpr int kWarps = 16;  // that compute; one more fetches weights

// Vectors in shared memory lie in blocks of 32 lanes x 8 elements, the first four elements of all lanes before the
// last four, so that a warp's 16-byte reads meet no bank twice.
__device__ inline int swizzled(int k) { return (k & ~255) | ((k >> 2 & 1) << 7) | ((k >> 3 & 31) << 2) | (k & 3); }
__host__ __device__ inline int swizzled_size(int n) { return (n + 255) & ~255; }

// The part [begin, end) of n items that this block works on.
__device__ inline int share_begin(int n) { return static_cast<int>(static_cast<int64_t>(n) * blockIdx.x / gridDim.x); }
__device__ inline int share_end(int n) { return static_cast<int>(static_cast<int64_t>(n) * (blockIdx.x + 1) / gridDim.x); }

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Asks for memory that will be read soon; address and size are multiples of 16.
__device__ inline void prefetch(const void* p, int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(static_cast<uint32_t>(bytes)) : "memory");
#endif
}

// Weights on their way through shared memory: one warp fetches tiles of rows in the order in which the phases will need
// them, as far ahead as there is room, and never waits for the other blocks; so the memory is busy while the computing
// warps meet at barriers. A stage always belongs to the same warp, tile i being the work of warp i % warps: so no warp
// can wait for a tile of the next round before that of the last one has arrived.
struct Ring {
  char* data;       // [stages, stage_bytes]
  uint64_t* full;   // [stages] mbarriers: the tile has arrived
  uint64_t* empty;  // [stages] mbarriers: the tile has been used
  int stages, stage_bytes;
  int warps;  // divides stages

  __device__ void init() {
#if __CUDA_ARCH__ >= 900
    for (int i = static_cast<int>(threadIdx.x); i < stages; i += static_cast<int>(blockDim.x)) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(full + i)) : "memory");
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(empty + i)) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    __syncthreads();
  }
  static __device__ void wait(uint64_t* barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra over;\nbra "
        "again;\nover:\n}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
#endif
  }
  // By one thread: tile number `tile` of the whole step.
  __device__ void fetch(unsigned tile, const void* from, unsigned bytes) const {
#if __CUDA_ARCH__ >= 900
    const unsigned stage = tile % stages, round = tile / stages;
    if (round > 0) wait(empty + stage, (round - 1) & 1);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(full + stage)), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(data + static_cast<int64_t>(stage) * stage_bytes)),
                 "l"(from), "r"(bytes), "r"(shared_address(full + stage))
                 : "memory");
#endif
  }
  __device__ const char* arrive(unsigned tile) const {
    wait(full + tile % stages, tile / stages & 1);
    return data + static_cast<int64_t>(tile % stages) * stage_bytes;
  }
  // After the whole warp has read the tile.
  __device__ void release(unsigned tile) const {
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    if (threadIdx.x % kWarp == 0) {
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(empty + tile % stages)) : "memory");
    }
#endif
  }
};

// Rows of a matrix are fetched one or two at a time, whatever fits into a stage.
template <typename W>
__host__ __device__ int rows_of_tile(int columns, int stage_bytes) {
  return columns * static_cast<int>(sizeof(W)) * 2 <= stage_bytes ? 2 : 1;
}
__device__ inline int tile_count(int rows, int rows_of_tile) { return (rows + rows_of_tile - 1) / rows_of_tile; }

template <typename W>
__device__ void fetch_matrix(const Ring& ring, unsigned& tile, const void* weight, int rows, int columns) {
  const int each = rows_of_tile<W>(columns, ring.stage_bytes), tiles = tile_count(rows, each);
  const int row_bytes = columns * static_cast<int>(sizeof(W));
  for (int i = share_begin(tiles); i < share_end(tiles); ++i) {
    const int count = min(each, rows - i * each);
    ring.fetch(tile++, static_cast<const char*>(weight) + static_cast<int64_t>(i) * each * row_bytes,
               static_cast<unsigned>(count * row_bytes));
  }
}

template <typename W>
__device__ void load8(const W* p, float (&w)[8]) {
  constexpr int kVectors = sizeof(W) / 2;
  uint4 raw[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) raw[v] = reinterpret_cast<const uint4*>(p)[v];
  const W* v = reinterpret_cast<const W*>(raw);
#pragma unroll
  for (int i = 0; i < 8; ++i) w[i] = to_float(v[i]);
}

// sum[r][t] += row r . x[t] over the lane's elements of a tile.
template <typename W, int kRows, int kTokens>
__device__ void multiply_tile(const W* tile, int columns, const float* x, float (&sum)[2][kTokens]) {
  const int ld_x = swizzled_size(columns);
#pragma unroll 2
  for (int k = static_cast<int>(threadIdx.x) % kWarp * 8; k < columns; k += kWarp * 8) {
    float w[kRows][8];
#pragma unroll
    for (int r = 0; r < kRows; ++r) load8(tile + r * columns + k, w[r]);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float v[8];
      *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(x + t * ld_x + swizzled(k));
      *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(x + t * ld_x + swizzled(k) + 128);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[r][t] = fmaf(w[r][i], v[i], sum[r][t]);
      }
    }
  }
}

// This block's rows of weight [rows, columns] times x [T, columns] in shared memory. On every lane of the warp that has
// the row, use.load(row) is called before the product, to fetch what use.store(row, sum, loaded) needs besides.
template <typename W, int kTokens, typename Use>
__device__ void multiply(const Ring& ring, unsigned& tile, int rows, int columns, const float* x, const Use& use) {
  const int each = rows_of_tile<W>(columns, ring.stage_bytes), tiles = tile_count(rows, each);
  const int begin = share_begin(tiles), end = share_end(tiles), warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first = (warp + ring.warps - static_cast<int>(tile % static_cast<unsigned>(ring.warps))) % ring.warps;
  for (int i = warp < ring.warps ? begin + first : end; i < end; i += ring.warps) {
    const unsigned number = tile + static_cast<unsigned>(i - begin);
    const int count = min(each, rows - i * each);
    const typename Use::Loaded loaded[2] = {use.load(i * each), use.load(i * each + count - 1)};
    const W* w = reinterpret_cast<const W*>(ring.arrive(number));
    float sum[2][kTokens] = {};
    if (count == 2) {
      multiply_tile<W, 2, kTokens>(w, columns, x, sum);
    } else {
      multiply_tile<W, 1, kTokens>(w, columns, x, sum);
    }
    ring.release(number);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (r >= count) break;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sum[r][t] = warp_sum(sum[r][t]);
      use.store(i * each + r, sum[r], loaded[r]);
    }
  }
  tile += static_cast<unsigned>(end - begin);
}

}  // namespace m4j::cuda
