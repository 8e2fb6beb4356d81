// What this machine can do at most, measured in the same run as the figures that are compared with it.
#pragma once

#include <string>

#include "measure.h"

namespace m4j::bench {

struct Ceilings {
  Spread read_gb_s;       // reading 1 GiB with all threads
  Spread sgemm_gflops;    // float32 matrix product with all threads
  std::string sgemm_how;  // which library did it
};

// Takes a few seconds. `repeat` samples each.
Ceilings measure_ceilings(int threads, int repeat);

}  // namespace m4j::bench
