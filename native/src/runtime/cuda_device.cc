#include "runtime/cuda_device.h"

#include <dlfcn.h>

#include <mutex>
#include <string>

#include "ops/ops.h"

namespace m4j {
namespace {

constexpr const char* kLibrary = "libmamba4j_cuda.so";

// Beside this library.
std::string default_path() {
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&m4j_abi_version), &self) == 0) return kLibrary;
  const std::string name = self.dli_fname;
  return name.substr(0, name.rfind('/') + 1) + kLibrary;
}

const cuda::Api& open_api(const char* library) {
  static std::mutex mutex;
  static const cuda::Api* api = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (api != nullptr) return *api;
  if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) == nullptr) {
    fail(M4J_ERR_UNSUPPORTED, "no NVIDIA driver on this machine (libcuda.so.1 cannot be opened)");
  }
  const std::string path = library == nullptr ? default_path() : library;
  void* opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) {
    const char* error = dlerror();
    fail(M4J_ERR_UNSUPPORTED, "the CUDA part of this library cannot be opened: %s", error == nullptr ? path.c_str() : error);
  }
  const auto get_api = reinterpret_cast<cuda::GetApi>(dlsym(opened, cuda::kGetApiName));
  api = get_api == nullptr ? nullptr : get_api(M4J_VERSION);
  if (api == nullptr) {
    dlclose(opened);
    fail(M4J_ERR_UNSUPPORTED, "%s is not the CUDA part of version %s of this library", path.c_str(), M4J_VERSION);
  }
  return *api;
}

}  // namespace

CudaDevice::CudaDevice(int32_t ordinal, const char* library) : api(open_api(library)) {
  call(api.engine_create, ordinal, reference_ops(), &engine, &info);
}

}  // namespace m4j
