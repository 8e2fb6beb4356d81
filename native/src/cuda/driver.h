// The driver's functions for virtual memory, found through the runtime so that nothing links against the driver.
#pragma once

#include <cuda.h>

namespace m4j::cuda {

struct Driver {
  decltype(&cuMemGetAllocationGranularity) granularity;
  decltype(&cuMemAddressReserve) reserve;
  decltype(&cuMemAddressFree) free_address;
  decltype(&cuMemCreate) create;
  decltype(&cuMemRelease) release;
  decltype(&cuMemMap) map;
  decltype(&cuMemUnmap) unmap;
  decltype(&cuMemSetAccess) set_access;

  static const Driver& instance();  // throws Failure if the driver lacks one
};

}  // namespace m4j::cuda
