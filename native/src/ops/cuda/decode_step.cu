#include "ops/cuda/decode_step.h"

#include <algorithm>

#include "ops/cuda/chain.cuh"
#include "ops/cuda/decode_fetch.cuh"
#include "ops/cuda/decode_products.cuh"
#include "ops/cuda/decode_scan.cuh"

namespace m4j::cuda {
namespace {

// Roles in this order: to multiply, to finish, to fetch, and in Mamba-1 to add.
template <bool kMamba2>
constexpr int kBlockThreads = kThreads + kFinishers + (kMamba2 ? 1 : 2) * kWarp;

template <typename W, typename S, bool kMamba2, int kTokens>
__global__ void __launch_bounds__(kBlockThreads<kMamba2>, 1)
    decode_step_kernel(const __grid_constant__ DecodeStepArgs args, const __grid_constant__ Exchange exchange,
                       const __grid_constant__ SharedLayout shape) {
  extern __shared__ float4 shared[];
  char* base = reinterpret_cast<char*>(shared);
  auto* barriers = reinterpret_cast<uint64_t*>(base + shape.barriers);
  const Ring ring{base + shape.ring, barriers, reinterpret_cast<unsigned*>(barriers + kMaxStages), shape.stages,
                  shape.stage_bytes};
  DecodeStep<W, S, kMamba2, kTokens> step(args, exchange, shape, ring, base);
  const auto meet = [] { asm volatile("bar.sync 0, %0;" ::"n"(kBlockThreads<kMamba2>) : "memory"); };
  if (threadIdx.x < kThreads) {
    step.prepare();
    meet();
    step.run();
    step.report();
  } else if (threadIdx.x < kThreads + kFinishers) {
    step.prepare();
    meet();
    step.finish();
  } else if (threadIdx.x < kThreads + kFinishers + kWarp) {
    ring.init();
    // Waits for nobody to begin.
    asm volatile("bar.arrive 0, %0;" ::"n"(kBlockThreads<kMamba2>) : "memory");
    step.fetch();
  } else if constexpr (!kMamba2) {
    meet();
    step.add();
  }
}

// body(kernel, threads, bytes of shared memory, arguments)
template <typename Body>
void with_launch(DecodeStepArgs a, Body&& body) {
  const auto launch = [&]<typename W, typename S, bool kMamba2, int kTokens>() {
    const Device device = Device::current();
    SharedLayout shape = shared_layout(a, device);
    Exchange exchange;
    layout(a, device.multiprocessors, &exchange);
    void* arguments[] = {&a, &exchange, &shape};
    body(reinterpret_cast<const void*>(decode_step_kernel<W, S, kMamba2, kTokens>),
         dim3(static_cast<unsigned>(device.multiprocessors)), dim3(kBlockThreads<kMamba2>),
         static_cast<unsigned>(shape.ring + shape.stages * shape.stage_bytes), arguments);
  };
  with_element_type(a.dtype, [&]<typename W>(W) {
    with_state_type(a.state_type, [&]<typename S>(S) {
      constexpr int kMost = kMaxDecodeTokens;
      if (a.tokens == 1) {
        a.mamba2 ? launch.template operator()<W, S, true, 1>() : launch.template operator()<W, S, false, 1>();
      } else {
        a.mamba2 ? launch.template operator()<W, S, true, kMost>() : launch.template operator()<W, S, false, kMost>();
      }
    });
  });
}

}  // namespace

bool decode_step_fits(const DecodeStepArgs& a) {
  const Device device = Device::current();
  const int64_t rows = std::max({a.vocab_size, a.d_inner, a.d_model});  // see Share
  if (rows * device.multiprocessors > INT32_MAX) return false;
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
  with_launch(a, [&](const void* kernel, dim3 blocks, dim3 threads, unsigned bytes, void** arguments) {
    // Not `bytes`: captured steps of other shapes may need more.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Device::current().shared_bytes),
          "decode_step");
    check(cudaLaunchCooperativeKernel(kernel, blocks, threads, arguments, bytes, stream), "decode_step");
  });
}

void decode_step_update(cudaGraphExec_t exec, cudaGraphNode_t step, const DecodeStepArgs& a) {
  with_launch(a, [&](const void* kernel, dim3 blocks, dim3 threads, unsigned bytes, void** arguments) {
    cudaKernelNodeParams params{};
    params.func = const_cast<void*>(kernel);
    params.gridDim = blocks;
    params.blockDim = threads;
    params.sharedMemBytes = bytes;
    params.kernelParams = arguments;
    check(cudaGraphExecKernelNodeSetParams(exec, step, &params), "decode_step");
  });
}

}  // namespace m4j::cuda
