#include "cuda/engine.h"

#include <cstdio>

namespace m4j::cuda {
namespace {

constexpr int kMinComputeMajor = 8;  // bf16 arithmetic, asynchronous copies

// Before anything else is made on the device.
int checked_device(int ordinal) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    fail(M4J_ERR_UNSUPPORTED, "no CUDA device: %s", cudaGetErrorString(error));
  }
  if (ordinal < 0 || ordinal >= count) {
    fail(M4J_ERR_UNSUPPORTED, "cuda:%d does not exist: this machine has %d CUDA device%s", ordinal, count,
         count == 1 ? "" : "s");
  }
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal), "cudaDeviceGetAttribute");
  if (major < kMinComputeMajor) {
    fail(M4J_ERR_UNSUPPORTED, "cuda:%d has compute capability %d.%d, expected %d.0 or higher", ordinal, major, minor,
         kMinComputeMajor);
  }
  check(cudaSetDevice(ordinal), "cudaSetDevice");
  return ordinal;
}

}  // namespace

Engine::Engine(int ordinal) : ordinal_(checked_device(ordinal)) {
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  memory_bytes = static_cast<int64_t>(total);
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
}

Engine::~Engine() {
  cudaSetDevice(ordinal_);
  cudaStreamDestroy(stream);
}

DeviceInfo Engine::info() const {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, ordinal_), "cudaGetDeviceProperties");
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  DeviceInfo info{};
  std::snprintf(info.name, sizeof info.name, "%.127s", properties.name);
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.memory_bytes = static_cast<int64_t>(total);
  info.free_bytes = static_cast<int64_t>(free);
  return info;
}

void Engine::wait_for(const unsigned* flag) const {
  // A kernel that fails sets no flag: the driver knows.
  constexpr unsigned kLooks = 1 << 16;
  const volatile unsigned* at = flag;
  for (unsigned looks = 1; *at == 0; ++looks) {
    if (looks % kLooks != 0) continue;
    const cudaError_t error = cudaStreamQuery(stream);
    if (error != cudaErrorNotReady) return check(error, "computing on the GPU");
  }
}

char* Engine::workspace(int64_t wanted) {
  if (const int64_t had = workspace_.bytes(); wanted > had) {
    wait();
    ++workspace_moves;
    workspace_ = DeviceBuffer();  // first, so that old and new are not held at once
    try {
      workspace_ = DeviceBuffer(wanted, "workspace", &bytes);
    } catch (const Failure&) {
      try {
        workspace_ = DeviceBuffer(had, "workspace", &bytes);
      } catch (const Failure&) {
        // the next call asks for what it needs
      }
      throw;
    }
  }
  return workspace_.data();
}

}  // namespace m4j::cuda
