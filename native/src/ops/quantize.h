// Quantisation of weights at load: blocks of 32 with one float16 scale (layouts in ops/ops.h).
#pragma once

#include <cstdint>

#include "ops/ops.h"

namespace m4j {

// Largest magnitude of a weight: the scales of both types have room for it.
constexpr float kMaxQuantisable = 0x1p18f;

// Quantises n weights (a multiple of kQuantBlock) of type F32, F16 or BF16 to Q8_0 or Q4_0. Q8_0 maps the largest weight
// of a block to +-127; the scale of Q4_0 is searched for the least squared error. False, and an incomplete result, if a
// weight is beyond kMaxQuantisable or no number.
bool quantize(const void* weights, DType from, int64_t n, DType to, uint8_t* out);

}  // namespace m4j
