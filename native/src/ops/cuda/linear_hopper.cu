#include "ops/cuda/linear_hopper.h"

#include <cuda.h>

#include <algorithm>
#include <type_traits>

#include "ops/cuda/chain.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/tma.cuh"
#include "ops/cuda/vec.cuh"
#include "ops/cuda/wgmma.cuh"

namespace m4j::cuda {
namespace {

constexpr int kColumns = 64;  // of a step: 128 bytes of each row, a panel of wgmma.cuh
constexpr unsigned kMaxSplits = 8;
constexpr int64_t kFewestSteps = 4;  // of a block
// Beyond so many tokens cuBLASLt wins, unless the matrix has so few rows that it leaves multiprocessors idle.
constexpr int64_t kMostTokens = 64, kFewRows = 256, kMostTokensOfFewRows = 1024;

// A block computes 64 kGroups rows of weight times kTokens rows of x, each group of four warps 64 of the rows; one more
// warp fetches. The sum over the columns is divided among the blocks of a cluster, which add their parts in the order of
// their numbers.
template <int kGroups, int kTokens, int kResident>
struct Tile {
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kWeightBytes = kRows * 128, kStageBytes = kWeightBytes + kTokens * 128;
  static constexpr int kStages = 204800 / kResident / kStageBytes;
  static constexpr int kConsumers = 128 * kGroups, kThreads = kConsumers + kWarp;
  static constexpr int kPitch = kRows + 4;  // of a token's sums: the lanes' stores meet no bank twice
  static constexpr int kSumBytes = kTokens * kPitch * 4;
  static constexpr int kSharedBytes = std::max(kStages * kStageBytes, kSumBytes) + 1024;  // to be aligned
};

struct Product {
  const float* bias;
  int64_t out_dim, tokens;
  void* out;
  int64_t ld_out;
  int steps;  // of kColumns columns
  unsigned splits, row_tiles;
  bool wide;  // out is float32
};

// Eight neighbouring outputs of a token.
template <typename T>
__device__ void store_outputs(const Product& a, int64_t token, int64_t row, float (&v)[8]) {
  if (a.bias != nullptr) {
    float bias[8];
    load_floats(a.bias + row, bias);
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] += bias[k];
  }
  const int64_t at = token * a.ld_out + row;
  if (a.wide) {
    store_floats(static_cast<float*>(a.out) + at, v);
  } else {
    store_floats(static_cast<T*>(a.out) + at, v);
  }
}

template <typename T, int kGroups, int kTokens, int kResident>
__global__ void __launch_bounds__(Tile<kGroups, kTokens, kResident>::kThreads, kResident)
    linear_hopper_kernel(const __grid_constant__ CUtensorMap weight, const __grid_constant__ CUtensorMap x,
                         const __grid_constant__ Product a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = Tile<kGroups, kTokens, kResident>;
  constexpr int kStages = Shape::kStages;
  extern __shared__ unsigned char unaligned[];
  __shared__ uint64_t full_barriers[kStages], empty_barriers[kStages];
  const uint32_t stages = (shared_address(unaligned) + 1023) & ~1023u;
  float* const sums = reinterpret_cast<float*>(unaligned + (stages - shared_address(unaligned)));
  const auto full = [&](int i) { return shared_address(&full_barriers[i % kStages]); };
  const auto empty = [&](int i) { return shared_address(&empty_barriers[i % kStages]); };
  const auto stage = [&](int i) { return stages + i % kStages * Shape::kStageBytes; };

  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarp, 0), lane = threadIdx.x % kWarp;
  const unsigned split = blockIdx.x % a.splits, item = blockIdx.x / a.splits;
  const int first_row = static_cast<int>(item % a.row_tiles) * Shape::kRows;
  const int first_token = static_cast<int>(item / a.row_tiles) * kTokens;
  const int begin = a.steps * split / a.splits, count = static_cast<int>(a.steps * (split + 1) / a.splits) - begin;
  if (threadIdx.x == 0) {
    prefetch_map(weight);
    prefetch_map(x);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), kGroups * 4);
    }
    publish_barriers();
  }
  __syncthreads();
  let_next_start();

  if (warp == kGroups * 4) {
    if (lane == 0) {
      const auto fetch_weight = [&](int i) {
        barrier_expect(full(i), Shape::kStageBytes);
        fetch_once(stage(i), weight, (begin + i) * kColumns, first_row, full(i));
      };
      const auto fetch_x = [&](int i) {
        fetch(stage(i) + Shape::kWeightBytes, x, (begin + i) * kColumns, first_token, full(i));
      };
      const int ahead = min(kStages, count);
      for (int i = 0; i < ahead; ++i) fetch_weight(i);
      wait_for_previous();
      for (int i = 0; i < ahead; ++i) fetch_x(i);
      for (int i = ahead; i < count; ++i) {
        barrier_wait(empty(i), (i / kStages - 1) & 1);
        fetch_weight(i);
        fetch_x(i);
      }
    }
    __syncwarp();
  } else {
    const int group = warp / 4;
    float d[kTokens / 8][4] = {};
    pin(d);
    for (int i = 0; i < count; ++i) {
      barrier_wait(full(i), i / kStages & 1);
      const uint64_t w = tile_descriptor(stage(i) + group * kPanelBytes);
      const uint64_t v = tile_descriptor(stage(i) + Shape::kWeightBytes);
      pin(d);
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) product_rows<T>(d, w + columns_offset(k), v + columns_offset(k), true);
      products_commit();
      products_wait<1>();
      pin(d);
      if (i > 0 && lane == 0) barrier_arrive(empty(i - 1));
    }
    products_wait<0>();
    pin(d);
    wait_for_previous();
    meet<Shape::kConsumers>();  // all stages have been read
    float* const to = sums + lane % 4 * 2 * Shape::kPitch + warp * 16 + lane / 4;
#pragma unroll
    for (int tile = 0; tile < kTokens / 8; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) to[(tile * 8 + k % 2) * Shape::kPitch + k / 2 * 8] = d[tile][k];
    }
    if (a.splits == 1) meet<Shape::kConsumers>();
  }
  if (a.splits > 1) cluster_meet();

  const int tokens = static_cast<int>(min(a.tokens - first_token, int64_t{kTokens}));
  const int first = tokens * split / a.splits, end = static_cast<int>(tokens * (split + 1) / a.splits);
  if (warp < kGroups * 4) {
#pragma unroll 2
    for (int i = threadIdx.x; i < (end - first) * (Shape::kRows / 8); i += Shape::kConsumers) {
      const int token = first + i / (Shape::kRows / 8), row = i % (Shape::kRows / 8) * 8;
      if (first_row + row >= a.out_dim) continue;
      const float* mine = sums + token * Shape::kPitch + row;
      float v[8] = {};
      if (a.splits == 1) {
        load_floats(mine, v);
      } else {
        float parts[kMaxSplits][8];
#pragma unroll
        for (unsigned s = 0; s < kMaxSplits; ++s) {
          if (s < a.splits) load_from_cluster(parts[s], shared_address(mine), s);
        }
#pragma unroll
        for (unsigned s = 0; s < kMaxSplits; ++s) {
#pragma unroll
          for (int k = 0; k < 8; ++k) v[k] += s < a.splits ? parts[s][k] : 0;
        }
      }
      store_outputs<T>(a, first_token + token, first_row + row, v);
    }
  }
  if (a.splits > 1) cluster_meet();  // others have read this block's sums
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* pointer = nullptr;
  cudaDriverEntryPointQueryResult result;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &pointer, 12000, cudaEnableDefault, &result),
        "cuTensorMapEncodeTiled");
  return result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(pointer) : nullptr;
}

// Boxes of kColumns columns and `box_rows` rows of a matrix of 16-bit numbers; zeros beyond its edges.
CUtensorMap tensor_map(Encode encode, DType dtype, const void* matrix, int64_t rows, int64_t columns, int64_t ld,
                       int box_rows) {
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(ld) * 2};
  const cuuint32_t box[] = {kColumns, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult result =
      encode(&map, dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
             const_cast<void*>(matrix), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) fail(M4J_ERR_INTERNAL, "cuTensorMapEncodeTiled: driver error %d", static_cast<int>(result));
  return map;
}

template <typename T, int kGroups, int kTokens, int kResident>
bool run(Encode encode, const LinearArgs& a, const void* weight, bool constant, cudaStream_t stream) {
  using Shape = Tile<kGroups, kTokens, kResident>;
  const auto kernel = linear_hopper_kernel<T, kGroups, kTokens, kResident>;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "cudaFuncGetAttributes");
  if (attributes.numRegs <= 32) return false;  // an empty body: the build holds no code for Hopper's products
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes),
        "cudaFuncSetAttribute");
  const int64_t row_tiles = ceil_div(a.weight.rows, Shape::kRows), steps = ceil_div(a.weight.columns, kColumns);
  const int64_t tiles = row_tiles * ceil_div(a.tokens, kTokens);
  const int64_t room = kResident * device_attribute(cudaDevAttrMultiProcessorCount);  // for blocks at once
  int64_t splits = 1;  // clusters of other sizes than powers of two leave multiprocessors idle
  while (2 * splits * tiles <= room && 2 * splits <= kMaxSplits && 2 * splits * kFewestSteps <= steps) splits *= 2;
  const Product product = {.bias = a.bias,
                           .out_dim = a.weight.rows,
                           .tokens = a.tokens,
                           .out = a.out,
                           .ld_out = a.ld_out,
                           .steps = static_cast<int>(steps),
                           .splits = static_cast<unsigned>(splits),
                           .row_tiles = static_cast<unsigned>(row_tiles),
                           .wide = a.out_dtype == DType::kF32};
  launch_kernel("linear (linear_hopper_kernel)", kernel,
                {.blocks = static_cast<unsigned>(tiles * splits),
                 .threads = Shape::kThreads,
                 .shared_bytes = Shape::kSharedBytes,
                 .cluster = product.splits,
                 .chained = constant},
                stream,
                tensor_map(encode, a.dtype, weight, a.weight.rows, a.weight.columns, a.weight.columns, Shape::kRows),
                tensor_map(encode, a.dtype, a.x, a.tokens, a.weight.columns, a.ld_x, kTokens), product);
  return true;
}

bool takes(const LinearArgs& a, const void* weight) {
  const int64_t per_16_bytes = a.out_dtype == DType::kF32 ? 4 : 8;
  return a.dtype != DType::kF32 && a.tokens <= (a.weight.rows <= kFewRows ? kMostTokensOfFewRows : kMostTokens) &&
         a.weight.rows % 8 == 0 && a.weight.columns % 8 == 0 && a.ld_x % 8 == 0 && a.ld_out % per_16_bytes == 0 &&
         is_aligned(a.x, 16) && is_aligned(weight, 16) && is_aligned(a.out, 16) && is_aligned(a.bias, 16) &&
         device_attribute(cudaDevAttrComputeCapabilityMajor) == 9;
}

}  // namespace

bool linear_hopper(const LinearArgs& a, const void* weight, bool constant, cudaStream_t stream) {
  static const Encode encode = find_encode();
  if (encode == nullptr || !takes(a, weight)) return false;
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const int64_t row_tiles = ceil_div(a.weight.rows, 128);
  const auto with_type = [&]<typename T>(T) {
    // Where even divided sums leave multiprocessors idle, smaller tiles.
    if (row_tiles * ceil_div(a.tokens, 64) * kMaxSplits < processors) {
      return run<T, 1, 32, 2>(encode, a, weight, constant, stream);
    }
    const auto with_tokens = [&]<int kTokens>(std::integral_constant<int, kTokens>) {
      // One block a multiprocessor fetches furthest ahead; where there are more, two take turns.
      return row_tiles <= processors ? run<T, 2, kTokens, 1>(encode, a, weight, constant, stream)
                                     : run<T, 2, kTokens, 2>(encode, a, weight, constant, stream);
    };
    return a.tokens <= 32 ? with_tokens(std::integral_constant<int, 32>())
                          : with_tokens(std::integral_constant<int, 64>());
  };
  return a.dtype == DType::kBF16 ? with_type(__nv_bfloat16()) : with_type(__half());
}

}  // namespace m4j::cuda
