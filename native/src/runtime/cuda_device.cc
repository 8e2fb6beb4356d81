#include "runtime/cuda_device.h"

#include <dlfcn.h>

#include <string>

namespace m4j {
namespace {

constexpr const char* kLibrary = "libmamba4j_cuda.so";

struct Opened {
  const cuda::Api* api = nullptr;
  std::string reason;

  Opened() {
    if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) == nullptr) {
      reason = "no NVIDIA driver on this machine (libcuda.so.1 cannot be opened)";
      return;
    }
    // It lies beside this library.
    Dl_info self;
    std::string path = kLibrary;
    if (dladdr(reinterpret_cast<const void*>(&m4j_abi_version), &self) != 0) {
      const std::string name = self.dli_fname;
      const std::size_t slash = name.rfind('/');
      if (slash != std::string::npos) path = name.substr(0, slash + 1) + kLibrary;
    }
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* error = dlerror();
      reason = std::string("the CUDA part of the library cannot be opened: ") + (error == nullptr ? path : error);
      return;
    }
    const auto get_api = reinterpret_cast<cuda::GetApi>(dlsym(library, cuda::kGetApiName));
    api = get_api == nullptr ? nullptr : get_api(M4J_VERSION);
    if (api == nullptr) reason = path + " is not of version " M4J_VERSION;
  }
};

const cuda::Api& open_api() {
  static const Opened opened;
  if (opened.api == nullptr) fail(M4J_ERR_UNSUPPORTED, "%s", opened.reason.c_str());
  return *opened.api;
}

}  // namespace

CudaDevice::CudaDevice(int32_t ordinal) : api(open_api()) { call(api.engine_create, ordinal, &engine, &info); }

}  // namespace m4j
