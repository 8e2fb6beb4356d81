#include "ops/cuda/linear_hopper.h"

#include <cuda.h>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "ops/cuda/chain.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/tma.cuh"
#include "ops/cuda/vec.cuh"
#include "ops/cuda/wgmma.cuh"

namespace m4j::cuda {
namespace {

constexpr int kPanel = 64;   // columns: 128 bytes of each row, a panel of wgmma.cuh
constexpr int kTokens = 64;  // of a block at most: the rows of a product
constexpr int kUnit = 8;     // rows of weight, a tile of a sum
constexpr int kConsumers = 128, kThreads = kConsumers + kWarp;
// A block's stages: less leaves the memory idle, more keeps the next kernel's blocks away.
constexpr int kMostStages = 32, kStagesBytes = 130 << 10;
constexpr int kSplits[] = {1, 2, 4, 8};  // clusters of other sizes leave multiprocessors idle
// With fewer rows a block takes in too much of x, and the sum over the columns is divided instead, down to so many.
constexpr int kFewestUnits = 5, kFewestColumns = 512, kMostUnits = 16;
// Beyond so many tokens cuBLASLt wins, unless the matrix has so few rows that it leaves multiprocessors idle.
constexpr int64_t kMostTokens = 64, kFewRows = 256, kMostTokensOfFewRows = 1024;

// Floats from a token's sums of so many units to the next token's: the lanes' stores meet no bank twice.
__host__ __device__ constexpr int pitch_of(int units) { return kUnit * units | 8; }

// A block computes 8 kUnits rows of weight times up to kTokens rows of x: one group of four warps; one more warp
// fetches. The sum over the columns is divided among the blocks of a cluster, each of which adds the parts of some units
// in the order of the blocks' numbers. Loops are not unrolled, but for the product's: a layer's kernels drive each
// other out of the instruction cache (bench/NOTES-gpu.md).
template <int kUnits>
struct Tile {
  static constexpr int kRows = kUnit * kUnits;
  static constexpr int kPanels = kUnits <= 6 ? 2 : 1;  // of a step: narrow tiles would spend their time at barriers
  static constexpr int kColumns = kPanel * kPanels;
  static constexpr int kPanelOfWeights = kRows * 128, kWeightBytes = kPanels * kPanelOfWeights;
  static constexpr int kSumBytes = kTokens * pitch_of(kUnits) * 4;
};

struct Product {
  const float* bias;
  int64_t tokens;
  void* out;
  int64_t ld_out;
  int steps;  // of Tile::kColumns columns
  int split_bits, row_tiles;  // the sum over the columns is divided among 2^split_bits blocks
  int units, more;            // of a row tile; the first `more` tiles have one more
  int token_tile, stages;     // token_tile: tokens of a block, a multiple of 8
  bool wide;                  // out is float32
  bool next_at_once;          // it starts the next kernel first, not when all is on its way
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

template <typename T, int kUnits>
__global__ void __launch_bounds__(kThreads)
    linear_hopper_kernel(const __grid_constant__ CUtensorMap weight, const __grid_constant__ CUtensorMap one_unit,
                         const __grid_constant__ CUtensorMap x, const __grid_constant__ Product a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = Tile<kUnits>;
  extern __shared__ unsigned char unaligned[];
  __shared__ uint64_t full_barriers[kMostStages], empty_barriers[kMostStages], all_parts;
  const uint32_t stages = (shared_address(unaligned) + 1023) & ~1023u;
  float* const sums = reinterpret_cast<float*>(unaligned + (stages - shared_address(unaligned)));
  const int x_bytes = a.token_tile * 128;  // of a panel
  const int stage_bytes = Shape::kWeightBytes + Shape::kPanels * x_bytes;
  const auto full = [&](int stage) { return shared_address(&full_barriers[stage]); };
  const auto empty = [&](int stage) { return shared_address(&empty_barriers[stage]); };

  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarp, 0), lane = threadIdx.x % kWarp;
  const int splits = 1 << a.split_bits, split = static_cast<int>(blockIdx.x) & (splits - 1);
  int row_tile = static_cast<int>(blockIdx.x) >> a.split_bits, first_token = 0;
  for (; row_tile >= a.row_tiles; row_tile -= a.row_tiles) first_token += a.token_tile;
  const int units = a.units + (row_tile < a.more), first_row = kUnit * (row_tile * a.units + min(row_tile, a.more));
  const int begin = a.steps * split >> a.split_bits, count = (a.steps * (split + 1) >> a.split_bits) - begin;
  // Block b of a cluster adds and stores units [each * b, each * (b + 1)); this one has `mine` of them, from `own` on.
  const int each = (units + splits - 1) >> a.split_bits, own = each * split, mine = min(each, units - own);
  if (threadIdx.x == 0) {
    prefetch_map(weight);
    prefetch_map(one_unit);
    prefetch_map(x);
#pragma unroll 1
    for (int i = 0; i < a.stages; ++i) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), kConsumers / kWarp);
    }
    barrier_init(shared_address(&all_parts), 1);
    publish_barriers();
  }
  __syncthreads();
  if (splits > 1) cluster_arrive_relaxed();

  if (warp == kConsumers / kWarp) {
    const uint64_t once = read_once_policy();
    const int arriving = Shape::kPanels * (units * kUnit * 128 + x_bytes);
    const auto fetch_weight = [&](int i, int stage) {
      barrier_expect(full(stage), arriving);
#pragma unroll
      for (int p = 0; p < Shape::kPanels; ++p) {
        const uint32_t to = stages + stage * stage_bytes + p * Shape::kPanelOfWeights;
        const int column = (begin + i) * Shape::kColumns + p * kPanel;
        fetch(to, weight, column, first_row, full(stage), once);
        if (units > a.units) {
          fetch(to + a.units * kUnit * 128, one_unit, column, first_row + a.units * kUnit, full(stage), once);
        }
      }
    };
    const auto fetch_x = [&](int i, int stage) {
#pragma unroll
      for (int p = 0; p < Shape::kPanels; ++p) {
        fetch(stages + stage * stage_bytes + Shape::kWeightBytes + p * x_bytes, x,
              (begin + i) * Shape::kColumns + p * kPanel, first_token, full(stage));
      }
    };
    if (splits > 1) barrier_expect(shared_address(&all_parts), splits * a.token_tile * max(mine, 0) * kUnit * 4);
    if (a.next_at_once) let_next_start();
    const int ahead = min(a.stages, count);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) fetch_weight(i, i);
    wait_for_previous();
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) fetch_x(i, i);
    if (ahead == count) let_next_start();
    int stage = 0, phase = 0;
#pragma unroll 1
    for (int i = ahead; i < count; ++i) {
      barrier_wait(empty(stage), phase);
      fetch_weight(i, stage);
      fetch_x(i, stage);
      if (i == count - 1) let_next_start();
      if (++stage == a.stages) stage = 0, phase ^= 1;
    }
    if (splits > 1) cluster_wait();
    return;
  }

  float d[kUnits][4] = {};
  pin(d);
  int stage = 0, phase = 0, last = 0;
  for (int i = 0; i < count; ++i) {
    barrier_wait(full(stage), phase);
    const uint64_t w = tile_descriptor(stages + stage * stage_bytes);
    // Rows beyond token_tile are whatever lies there: a row of x goes into its own row of the sum only.
    const uint64_t v = tile_descriptor(stages + stage * stage_bytes + Shape::kWeightBytes);
    pin(d);
    products_begin();
#pragma unroll
    for (int p = 0; p < Shape::kPanels; ++p) {
#pragma unroll
      for (int k = 0; k < kPanel / 16; ++k) {
        product_rows<T>(d, v + (p * x_bytes >> 4) + columns_offset(k),
                        w + (p * Shape::kPanelOfWeights >> 4) + columns_offset(k), true);
      }
    }
    products_commit();
    products_wait<1>();
    pin(d);
    if (i > 0 && lane == 0) barrier_arrive(empty(last));
    last = stage;
    if (++stage == a.stages) stage = 0, phase ^= 1;
  }
  products_wait<0>();
  pin(d);
  wait_for_previous();

  // parts: [splits, token_tile, pitch], of all blocks of the cluster; those of one lie where its stages were.
  const int pitch = pitch_of(splits == 1 ? kUnits : each), part_size = a.token_tile * pitch;
  const float* const parts = splits == 1 ? sums : sums + a.stages * stage_bytes / 4;
  const int at = (warp * 16 + lane / 4) * pitch + lane % 4 * 2;
  if (splits == 1) {
    meet<kConsumers>();  // all stages have been read
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      float* const to = sums + at + unit * kUnit;
      *reinterpret_cast<float2*>(to) = make_float2(d[unit][0], d[unit][1]);
      *reinterpret_cast<float2*>(to + 8 * pitch) = make_float2(d[unit][2], d[unit][3]);
    }
    meet<kConsumers>();
  } else {
    cluster_wait();  // all blocks have begun
    const uint32_t from_this_block = shared_address(parts) + 4 * (split * part_size + at);
    int index = each, owner = -1;
    uint32_t to = 0, barrier = 0;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit, ++index, to += 4 * kUnit) {
      if (unit >= units) break;
      if (index == each) {
        ++owner, index = 0;
        to = address_in_block(from_this_block, owner), barrier = address_in_block(shared_address(&all_parts), owner);
      }
      if (warp * 16 < a.token_tile) send(to, d[unit][0], d[unit][1], barrier);
      if (warp * 16 + 8 < a.token_tile) send(to + 4 * 8 * pitch, d[unit][2], d[unit][3], barrier);
    }
    barrier_wait_of_cluster(shared_address(&all_parts), 0);
  }
  const int tokens = static_cast<int>(min(a.tokens - first_token, static_cast<int64_t>(a.token_tile)));
#pragma unroll 1
  for (int i = threadIdx.x; i < tokens * mine; i += kConsumers) {
    const int token = i / mine, unit = i % mine;
    const float* from = parts + token * pitch + kUnit * unit;
    float v[8];
    load_floats(from, v);
#pragma unroll 1
    for (int part = 1; part < splits; ++part) {
      float more[8];
      load_floats(from += part_size, more);
#pragma unroll
      for (int k = 0; k < 8; ++k) v[k] += more[k];
    }
    store_outputs<T>(a, first_token + token, first_row + kUnit * (own + unit), v);
  }
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

// Boxes of kPanel columns and `box_rows` rows of a matrix of 16-bit numbers; zeros beyond its edges.
CUtensorMap tensor_map(Encode encode, DType dtype, const void* matrix, int64_t rows, int64_t columns, int64_t ld,
                       int64_t box_rows) {
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(ld) * 2};
  const cuuint32_t box[] = {kPanel, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult result =
      encode(&map, dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
             const_cast<void*>(matrix), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) fail(M4J_ERR_INTERNAL, "cuTensorMapEncodeTiled: driver error %d", static_cast<int>(result));
  return map;
}

// Of the sums that the blocks of a cluster send to one.
constexpr int parts_bytes(int splits, int units, int tokens) {
  return splits == 1 ? 0 : splits * tokens * pitch_of((units + splits - 1) / splits) * 4;
}

constexpr int kAlignment = 1024;  // of the stages

// Shared memory behind the stages, and in all, at most. Each launch allows so much, not what it takes: what is allowed
// belongs to the function, and another engine on this GPU may be about to launch it.
constexpr int kMostBehind = [] {
  int most = kTokens * 128;
  for (const int splits : kSplits) most = std::max(most, parts_bytes(splits, kMostUnits, kTokens));
  return most;
}();
constexpr int kMostShared = kStagesBytes + kMostBehind + kAlignment;
static_assert(Tile<kMostUnits>::kSumBytes <= kStagesBytes);

struct Plan {
  int64_t splits, row_tiles, token_tile;
};

// Clusters of so many blocks that the device runs at a time, if each block has a multiprocessor.
int64_t clusters_at_once(int splits) {
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(splits), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(splits));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kStagesBytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  const auto kernel = reinterpret_cast<const void*>(linear_hopper_kernel<__nv_bfloat16, kFewestUnits>);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared), "cudaFuncSetAttribute");
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "cudaOccupancyMaxActiveClusters");
  return std::max(clusters, 1);
}

// Each multiprocessor has one block, or the same number of them one after another: the time of a product is what the
// busiest of them needs to take in weights and x.
Plan make_plan(const LinearArgs& a) {
  static const std::array<int64_t, std::size(kSplits)> at_once = [] {
    std::array<int64_t, std::size(kSplits)> clusters;
    for (std::size_t i = 0; i < std::size(kSplits); ++i) clusters[i] = clusters_at_once(kSplits[i]);
    return clusters;
  }();
  Plan plan{};
  plan.token_tile = std::min<int64_t>(kTokens, ceil_div(a.tokens, 8) * 8);
  const int64_t units = a.weight.rows / kUnit, token_tiles = ceil_div(a.tokens, plan.token_tile);
  for (std::size_t i = 0; i < std::size(kSplits); ++i) {
    if (i > 0 && a.weight.columns < kSplits[i] * kFewestColumns) break;
    plan.splits = kSplits[i];
    int64_t rounds = 1;
    do {
      plan.row_tiles = std::clamp<int64_t>(at_once[i] * rounds++ / token_tiles, 1, units);
    } while (ceil_div(units, plan.row_tiles) > kMostUnits);
    if (ceil_div(units, plan.row_tiles) >= kFewestUnits) break;
  }
  const int64_t most = ceil_div(units, plan.row_tiles);
  // Evenly, where a unit less would be a large part of a block.
  if (most < kFewestUnits) plan.row_tiles = ceil_div(units, most);
  // Where x is more than the weights of a block, half as many blocks.
  if (plan.splits == 1 && most * kUnit < plan.token_tile) plan.row_tiles = ceil_div(plan.row_tiles, 2);
  return plan;
}

// The next kernel starts when all is on its way, so that what it fetches fills the time in which this one ends; earlier
// it would only take the memory's time. But a short product has none to fill, and one of few rows that is divided most
// leaves the memory idle, as does the end of a large divided one (bench/NOTES-gpu.md).
bool next_at_once(const LinearArgs& a, const Plan& plan, int64_t steps) {
  constexpr int64_t kShort = 4, kFewTokens = 8, kLarge = int64_t{12} << 20;  // steps, tokens, weights
  return steps <= kShort || plan.splits == kSplits[std::size(kSplits) - 1] ||
         (plan.splits > 1 && a.tokens >= kFewTokens && a.weight.rows * a.weight.columns >= kLarge);
}

template <typename T, int kUnits>
void run(Encode encode, const LinearArgs& a, const Plan& plan, const void* weight, bool constant, cudaStream_t stream) {
  using Shape = Tile<kUnits>;
  const auto kernel = linear_hopper_kernel<T, kUnits>;
  const int64_t steps = ceil_div(a.weight.columns, Shape::kColumns), units = a.weight.rows / kUnit;
  const int64_t x_bytes = plan.token_tile * 128, stage_bytes = Shape::kWeightBytes + Shape::kPanels * x_bytes;
  const int64_t stages = std::min<int64_t>({kStagesBytes / stage_bytes, ceil_div(steps, plan.splits), kMostStages});
  // Behind the stages: parts of sums, or what the last stage's x lacks to 64 rows.
  const int64_t behind = std::max<int64_t>(
      parts_bytes(static_cast<int>(plan.splits), kUnits, static_cast<int>(plan.token_tile)), kTokens * 128 - x_bytes);
  const int64_t shared = std::max<int64_t>(stages * stage_bytes + behind, Shape::kSumBytes) + kAlignment;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared), "cudaFuncSetAttribute");
  const Product product = {.bias = a.bias,
                           .tokens = a.tokens,
                           .out = a.out,
                           .ld_out = a.ld_out,
                           .steps = static_cast<int>(steps),
                           .split_bits = std::countr_zero(static_cast<unsigned>(plan.splits)),
                           .row_tiles = static_cast<int>(plan.row_tiles),
                           .units = static_cast<int>(units / plan.row_tiles),
                           .more = static_cast<int>(units % plan.row_tiles),
                           .token_tile = static_cast<int>(plan.token_tile),
                           .stages = static_cast<int>(stages),
                           .wide = a.out_dtype == DType::kF32,
                           .next_at_once = next_at_once(a, plan, steps)};
  const auto map_of_weight = [&](int64_t box_units) {
    return tensor_map(encode, a.dtype, weight, a.weight.rows, a.weight.columns, a.weight.columns, kUnit * box_units);
  };
  launch_kernel("linear (linear_hopper_kernel)", kernel,
                {.blocks = plan.row_tiles * ceil_div(a.tokens, plan.token_tile) * plan.splits,
                 .threads = kThreads,
                 .shared_bytes = static_cast<std::size_t>(shared),
                 .cluster = static_cast<unsigned>(plan.splits),
                 .chained = constant},
                stream, map_of_weight(product.units), map_of_weight(1),
                tensor_map(encode, a.dtype, a.x, a.tokens, a.weight.columns, a.ld_x, plan.token_tile), product);
}

// Whether the build holds code for Hopper's products: else bodies are empty.
bool is_compiled() {
  cudaFuncAttributes attributes;
  const auto kernel = reinterpret_cast<const void*>(linear_hopper_kernel<__nv_bfloat16, kMostUnits>);
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  return attributes.numRegs > 64;
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
  if (!takes(a, weight)) return false;
  static const Encode encode = is_compiled() ? find_encode() : nullptr;
  if (encode == nullptr) return false;
  const Plan plan = make_plan(a);
  const int64_t units = ceil_div(a.weight.rows / kUnit, plan.row_tiles);
  with_half_type(a.dtype, [&]<typename T>(T) {
    // The narrowest that is wide enough.
    const auto with_units = [&]<int kUnits, int... kWider>(auto& self, std::integer_sequence<int, kUnits, kWider...>) {
      if constexpr (sizeof...(kWider) > 0) {
        if (units > kUnits) return self(self, std::integer_sequence<int, kWider...>());
      }
      run<T, kUnits>(encode, a, plan, weight, constant, stream);
    };
    with_units(with_units, std::integer_sequence<int, 2, 3, 4, 5, 6, 8, 10, 11, 12, kMostUnits>());
  });
  return true;
}

}  // namespace m4j::cuda
