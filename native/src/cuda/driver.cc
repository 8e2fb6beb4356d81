#include "cuda/driver.h"

#include <cuda_runtime.h>

#include "ops/cuda/check.h"

namespace m4j::cuda {
namespace {

template <typename Function>
void find(Function& function, const char* name) {
  void* pointer = nullptr;
  cudaDriverEntryPointQueryResult result;
  constexpr unsigned kVersion = 12000;  // of the functions' signatures
  check(cudaGetDriverEntryPointByVersion(name, &pointer, kVersion, cudaEnableDefault, &result), name);
  if (result != cudaDriverEntryPointSuccess) fail(M4J_ERR_UNSUPPORTED, "the CUDA driver has no function %s", name);
  function = reinterpret_cast<Function>(pointer);
}

Driver open() {
  Driver d{};
  find(d.granularity, "cuMemGetAllocationGranularity");
  find(d.reserve, "cuMemAddressReserve");
  find(d.free_address, "cuMemAddressFree");
  find(d.create, "cuMemCreate");
  find(d.release, "cuMemRelease");
  find(d.map, "cuMemMap");
  find(d.unmap, "cuMemUnmap");
  find(d.set_access, "cuMemSetAccess");
  return d;
}

}  // namespace

const Driver& Driver::instance() {
  static const Driver driver = open();
  return driver;
}

}  // namespace m4j::cuda
