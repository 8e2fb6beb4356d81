#include "ops/cuda/convert.h"

#include <algorithm>

#include "ops/cuda/launch.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float block_scale(const uint8_t* block) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(block[0] | block[1] << 8)));
}

__device__ int block_code(const uint8_t* block, int k, bool wide) {
  if (wide) return static_cast<int8_t>(block[2 + k]);
  return (k < 16 ? block[2 + k] & 15 : block[2 + k - 16] >> 4) - 8;
}

// Element i of an array in a checkpoint's layout; blocks of quantised types lie at any address.
template <DType kFrom>
__device__ float load(const void* p, int64_t i) {
  if constexpr (kFrom == DType::kF32) {
    return static_cast<const float*>(p)[i];
  } else if constexpr (kFrom == DType::kF16) {
    return to_float(static_cast<const __half*>(p)[i]);
  } else if constexpr (kFrom == DType::kBF16) {
    return to_float(static_cast<const __nv_bfloat16*>(p)[i]);
  } else {
    constexpr bool kWide = kFrom == DType::kQ8_0;
    const uint8_t* block = static_cast<const uint8_t*>(p) + i / kQuantBlock * (kWide ? 34 : 18);
    return block_scale(block) * static_cast<float>(block_code(block, static_cast<int>(i % kQuantBlock), kWide));
  }
}

template <DType kFrom, typename To>
__global__ void convert_kernel(const void* __restrict__ source, int64_t rows, int64_t columns, To* __restrict__ out,
                               int64_t ld_out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns; i += step) {
    out[i / columns * ld_out + i % columns] = from_float<To>(load<kFrom>(source, i));
  }
}

// Blocks into codes and scales.
template <bool kWide>
__global__ void split_kernel(const uint8_t* __restrict__ source, int64_t count, int8_t* __restrict__ codes,
                             __half* __restrict__ scales) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint8_t* block = source + i / kQuantBlock * (kWide ? 34 : 18);
    const int k = static_cast<int>(i % kQuantBlock);
    codes[i] = static_cast<int8_t>(block_code(block, k, kWide));
    if (k == 0) scales[i / kQuantBlock] = __float2half_rn(block_scale(block));
  }
}

template <DType kFrom>
void convert_from(const ConvertArgs& a, unsigned grid, cudaStream_t stream) {
  with_element_type(a.to, [&]<typename To>(To) {
    convert_kernel<kFrom><<<grid, kThreads, 0, stream>>>(a.source, a.rows, a.columns, static_cast<To*>(a.out), a.ld_out);
  });
}

}  // namespace

void convert(const ConvertArgs& a, cudaStream_t stream) {
  const int64_t count = a.rows * a.columns;
  const auto grid = static_cast<unsigned>(std::min<int64_t>(ceil_div(count, kThreads), 1 << 20));
  const auto* bytes = static_cast<const uint8_t*>(a.source);
  if (a.to == DType::kQ8_0) {
    auto* codes = static_cast<int8_t*>(a.out);
    auto* scales = static_cast<__half*>(a.scales);
    if (a.from == DType::kQ8_0) {
      split_kernel<true><<<grid, kThreads, 0, stream>>>(bytes, count, codes, scales);
    } else {
      split_kernel<false><<<grid, kThreads, 0, stream>>>(bytes, count, codes, scales);
    }
  } else {
    switch (a.from) {
      case DType::kF32: convert_from<DType::kF32>(a, grid, stream); break;
      case DType::kF16: convert_from<DType::kF16>(a, grid, stream); break;
      case DType::kBF16: convert_from<DType::kBF16>(a, grid, stream); break;
      case DType::kQ8_0: convert_from<DType::kQ8_0>(a, grid, stream); break;
      case DType::kQ4_0: convert_from<DType::kQ4_0>(a, grid, stream); break;
    }
  }
  check_launch("convert");
}

}  // namespace m4j::cuda
