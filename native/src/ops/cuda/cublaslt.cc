#include "ops/cuda/cublaslt.h"

#include <dlfcn.h>

#include <cstdio>

#include "runtime/failure.h"

namespace m4j::cuda {
namespace {

constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so",
                                  "/usr/local/cuda/lib64/libcublasLt.so"};

struct Opened {
  CublasLt api{};
  char reason[256] = "";

  Opened() {
    void* library = nullptr;
    for (const char* name : kNames) {
      if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (library == nullptr) {
      std::snprintf(reason, sizeof reason,
                    "cuBLASLt is missing: none of libcublasLt.so.13, .12 or libcublasLt.so could be opened; install "
                    "NVIDIA's cuBLAS or put its folder into LD_LIBRARY_PATH");
      return;
    }
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr && reason[0] == 0) std::snprintf(reason, sizeof reason, "cuBLASLt has no function %s", name);
    };
    find(api.create, "cublasLtCreate");
    find(api.destroy, "cublasLtDestroy");
    find(api.desc_create, "cublasLtMatmulDescCreate");
    find(api.desc_destroy, "cublasLtMatmulDescDestroy");
    find(api.desc_set, "cublasLtMatmulDescSetAttribute");
    find(api.layout_create, "cublasLtMatrixLayoutCreate");
    find(api.layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(api.preference_create, "cublasLtMatmulPreferenceCreate");
    find(api.preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(api.preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(api.heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(api.matmul, "cublasLtMatmul");
  }
};

}  // namespace

const CublasLt& CublasLt::instance() {
  static const Opened opened;
  if (opened.reason[0] != 0) fail(M4J_ERR_UNSUPPORTED, "%s", opened.reason);
  return opened.api;
}

}  // namespace m4j::cuda
