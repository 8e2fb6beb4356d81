#include "ops/cuda/convert.h"

#include <algorithm>

#include "ops/cuda/launch.cuh"
#include "ops/cuda/stored.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 256;

template <DType kFrom, typename To>
__global__ void convert_kernel(const void* __restrict__ source, int64_t rows, int64_t columns, To* __restrict__ out,
                               int64_t ld_out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns; i += step) {
    out[i / columns * ld_out + i % columns] = from_float<To>(load_stored<kFrom>(source, i));
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
    with_stored_type(a.from, [&]<DType kFrom>() { convert_from<kFrom>(a, grid, stream); });
  }
  check_launch("convert");
}

}  // namespace m4j::cuda
