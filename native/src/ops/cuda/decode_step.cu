#include "ops/cuda/decode_step.h"

#include "ops/cuda/chain.cuh"
#include "ops/cuda/decode_fetch.cuh"
#include "ops/cuda/decode_products.cuh"
#include "ops/cuda/decode_scan.cuh"

namespace m4j::cuda {
namespace {

constexpr int threads_of_block(bool mamba2) { return kThreads + (mamba2 ? 1 : 2) * kWarp; }

template <typename W, typename S, bool kMamba2, int kTokens>
__global__ void __launch_bounds__(threads_of_block(kMamba2), 1)
    decode_step_kernel(const __grid_constant__ DecodeStepArgs args, const __grid_constant__ Exchange exchange,
                       const __grid_constant__ SharedLayout shape) {
  extern __shared__ float4 shared[];
  char* base = reinterpret_cast<char*>(shared);
  auto* barriers = reinterpret_cast<uint64_t*>(base + shape.barriers);
  const Ring ring{base + shape.ring, barriers, reinterpret_cast<unsigned*>(barriers + kMaxStages), shape.stages,
                  shape.stage_bytes};
  ring.init();
  DecodeStep<W, S, kMamba2, kTokens> step(args, exchange, shape, ring, base);
  if (threadIdx.x < kThreads) {
    step.run();
  } else if (threadIdx.x < kThreads + kWarp) {
    step.fetch();
  } else if constexpr (!kMamba2) {
    step.add();
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
void launch(DecodeStepArgs a, cudaStream_t stream) {
  const auto kernel = decode_step_kernel<W, S, kMamba2, kTokens>;
  const Device device = Device::current();
  SharedLayout shape = shared_layout(a, device);
  const int bytes = shape.ring + shape.stages * shape.stage_bytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "decode_step");
  Exchange exchange;
  layout(a, device.multiprocessors, &exchange);
  void* arguments[] = {&a, &exchange, &shape};
  check(cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(device.multiprocessors)),
                                    dim3(threads_of_block(kMamba2)), arguments, static_cast<std::size_t>(bytes),
                                    stream),
        "decode_step");
}

}  // namespace

bool decode_step_fits(const DecodeStepArgs& a) {
  const Device device = Device::current();
  const bool sizes = a.mamba2 ? a.n_groups <= kWarps : a.dt_rank_padded <= kMaxRank && a.d_state <= kMaxScanState;
  return a.tokens <= kMaxDecodeTokens && (a.tokens == 1 || a.tokens * a.d_inner <= kMaxHandedOver) &&
         a.d_conv <= kMaxConv && sizes &&
         can_wait(reinterpret_cast<const void*>(decode_step_kernel<float, float, false, 1>)) &&
         device.cooperative != 0 && shared_layout(a, device).stages > 0;
}

int64_t decode_step_workspace(const DecodeStepArgs& a) {
  Exchange unused;
  return layout(a, Device::current().multiprocessors, &unused);
}

void decode_step(const DecodeStepArgs& a, cudaStream_t stream) {
  with_element_type(a.dtype, [&]<typename W>(W) {
    with_state_type(a.state_type, [&]<typename S>(S) {
      if (a.tokens == 1) {
        a.mamba2 ? launch<W, S, true, 1>(a, stream) : launch<W, S, false, 1>(a, stream);
      } else {
        a.mamba2 ? launch<W, S, true, kMaxDecodeTokens>(a, stream) : launch<W, S, false, kMaxDecodeTokens>(a, stream);
      }
    });
  });
}

}  // namespace m4j::cuda
