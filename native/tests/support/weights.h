// Weights in their stored dtype, decoded by the definition of the formats and not by the code under test.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.h"
#include "support/guarded.h"
#include "support/random.h"

namespace m4j::test {

inline constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

inline std::string dtype_name(DType t) { return t == DType::kF32 ? "f32" : t == DType::kF16 ? "f16" : "bf16"; }

// Whether an instruction set multiplies pairs of bfloat16, so that activations may be rounded for it.
inline bool multiplies_bf16(const std::string& target) { return target == "avx3_bf16" || target == "amx"; }

// Value of a 16-bit float by IEEE 754's definition: sign, exponent with bias, fraction.
inline double decode_half(DType dtype, uint16_t bits) {
  const int mantissa_bits = dtype == DType::kF16 ? 10 : 7;
  const int bias = dtype == DType::kF16 ? 15 : 127;
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const int fraction = bits & ((1 << mantissa_bits) - 1);
  double value;
  if (exponent == 2 * bias + 1) {
    value = fraction ? NAN : INFINITY;
  } else if (exponent == 0) {
    value = std::ldexp(fraction, 1 - bias - mantissa_bits);
  } else {
    value = std::ldexp(fraction + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
  return bits & 0x8000 ? -value : value;
}

struct Weights {
  DType dtype;
  std::vector<float> singles;    // one of the two is empty
  std::vector<uint16_t> halves;

  static Weights random(Random& random, DType dtype, int64_t size) {
    if (dtype == DType::kF32) return {dtype, random.normal(size), {}};
    return {dtype, {}, random.halves(size, dtype)};
  }
  double operator[](int64_t i) const {
    const size_t k = static_cast<size_t>(i);
    return dtype == DType::kF32 ? singles[k] : decode_half(dtype, halves[k]);
  }
};

// The guarded copy of them that an op reads.
class GuardedWeights {
 public:
  GuardedWeights(const Weights& w, int64_t cols, const Layout& layout)
      : dtype_(w.dtype),
        singles_(Guarded<float>::input(w.singles, cols, layout)),
        halves_(Guarded<uint16_t>::input(w.halves, cols, layout)) {}
  const void* data() const {
    return dtype_ == DType::kF32 ? static_cast<const void*>(singles_.data()) : halves_.data();
  }
  int64_t ld() const { return dtype_ == DType::kF32 ? singles_.ld() : halves_.ld(); }

 private:
  DType dtype_;
  Guarded<float> singles_;
  Guarded<uint16_t> halves_;
};

}  // namespace m4j::test
