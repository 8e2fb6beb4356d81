// Quantisation of weights at load: blocks of 32 with one float16 scale (layouts in ops/ops.h).
#pragma once

#include <cstdint>

#include "ops/ops.h"

namespace m4j {

// Quantises n weights (a multiple of kQuantBlock) to Q8_0 or Q4_0. Scales are chosen for the least squared error of
// each block. Weights must be finite.
void quantize(const void* weights, DType from, int64_t n, DType to, uint8_t* out);

}  // namespace m4j
