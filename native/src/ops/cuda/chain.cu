#include "ops/cuda/chain.cuh"

#include "ops/cuda/check.h"

namespace m4j::cuda {

int device_attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

// Kernels compiled for older architectures than that of the device hold no waits. All are compiled for the same ones.
bool can_wait(const void* kernel) {
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) < 9) return false;
  static const bool compiled = [&] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
    return attributes.ptxVersion >= 90;
  }();
  return compiled;
}

void launch_kernel(const char* what, const void* kernel, const LaunchShape& shape, cudaStream_t stream, void** args) {
  if (shape.blocks > INT32_MAX) {
    fail(M4J_ERR_UNSUPPORTED, "%s: needs %lld blocks, the GPU takes up to %d at once", what,
         static_cast<long long>(shape.blocks), INT32_MAX);
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (shape.chained && can_wait(kernel)) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {shape.cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelExC(&config, kernel, args), what);
}

}  // namespace m4j::cuda
