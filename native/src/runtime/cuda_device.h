// A GPU behind libmamba4j_cuda, which is opened only where there is a driver. Wraps the table of cuda/cuda_api.h: status
// codes become Failure again, handles are released by their owner.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "cuda/cuda_api.h"
#include "runtime/failure.h"

namespace m4j {

class CudaDevice {
 public:
  // `library`: file of libmamba4j_cuda, null for the one beside this library; a process opens it once. Throws Failure
  // (M4J_ERR_UNSUPPORTED) that says why there is no such device.
  CudaDevice(int32_t ordinal, const char* library);
  ~CudaDevice() { api.engine_release(engine); }
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  // Calls a function of the table, whose last argument is the error to fill.
  template <typename Function, typename... Args>
  static void call(Function function, Args&&... args) {
    m4j_error error{};
    const m4j_status status = function(std::forward<Args>(args)..., &error);
    if (status != M4J_OK) fail(status, "%s", error.message);
  }

  const cuda::Api& api;
  cuda::Engine* engine = nullptr;
  cuda::DeviceInfo info{};
};

}  // namespace m4j
