#include "ops/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "ops/half.h"

namespace m4j {
namespace {

// (x + kRounder) - kRounder is x to the nearest integer, ties to even, for |x| < 2^22: behind the sum no bits are left
// for a fraction. Unlike a call of the C library it fits into vector registers.
constexpr float kRounder = 0x1.8p23f;

// A block's codes q in lowest ... highest for scale d, a float16 value.
inline float code(float v, float inverse, float lowest, float highest) {
  return (std::min(std::max(v * inverse, lowest), highest) + kRounder) - kRounder;
}

inline float inverse_of(float d) { return d == 0 ? 0 : 1 / d; }

float to_half(float d) { return f16_to_f32(f32_to_f16(d)); }

constexpr float kQ4Lowest = -8, kQ4Highest = 7;

// What is left of a block by scale d, and the sums of v q and q q for its codes q.
struct Q4Fit {
  float error, vq, qq;
};

// Four lanes are a register of every processor that the library runs on. Left to itself, the compiler keeps the order
// of these additions and so computes one weight at a time.
constexpr int64_t kLanes = 4;
using Vec = float __attribute__((vector_size(kLanes * sizeof(float))));

inline float sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }

Q4Fit fit_q4(const float* v, float d) {
  const Vec zero = {}, inverse = zero + inverse_of(d), lowest = zero + kQ4Lowest, highest = zero + kQ4Highest;
  Vec error = {}, vq = {}, qq = {};
  for (int64_t i = 0; i < kQuantBlock; i += kLanes) {
    Vec x;
    std::memcpy(&x, v + i, sizeof x);
    Vec q = x * inverse;
    q = q < lowest ? lowest : q;
    q = q > highest ? highest : q;
    q = (q + kRounder) - kRounder;
    const Vec e = x - d * q;
    error += e * e;
    vq += x * q;
    qq += q * q;
  }
  return {sum(error), sum(vq), sum(qq)};
}

// Scales to begin with, as fractions of the one that maps the largest weight to the last code: a little clipping
// of the largest may pay for finer steps of the others.
constexpr float kQ4Starts[] = {1.0f, 0.92f, 0.86f, 0.8f, 1.1f};

// For each start the codes, then the scale that suits these codes best, then the codes once more. The starts take turns
// so that the processor may work on several at once.
float best_q4_scale(const float* v, float extreme) {
  constexpr int kStarts = static_cast<int>(std::size(kQ4Starts));
  if (extreme == 0) return 0;
  float d[2 * kStarts], error[2 * kStarts];
  for (int i = 0; i < kStarts; ++i) d[i] = to_half(extreme / kQ4Lowest * kQ4Starts[i]);
  for (int i = 0; i < 2 * kStarts; ++i) {
    const Q4Fit fit = fit_q4(v, d[i]);
    error[i] = fit.error;
    if (i < kStarts) d[i + kStarts] = fit.qq == 0 ? 0 : to_half(fit.vq / fit.qq);
  }
  return d[std::min_element(error, error + 2 * kStarts) - error];
}

// The weight of the largest magnitude, with its sign; NaN if there is one.
float extreme_of(const float* v) {
  float extreme = 0;
  for (int64_t i = 0; i < kQuantBlock; ++i) {
    if (!(std::fabs(v[i]) <= std::fabs(extreme))) extreme = v[i];
    if (std::isnan(extreme)) break;
  }
  return extreme;
}

void load_block(const void* weights, DType from, int64_t begin, float* v) {
  if (from == DType::kF32) {
    std::memcpy(v, static_cast<const float*>(weights) + begin, kQuantBlock * sizeof(float));
  } else if (from == DType::kBF16) {
    for (int64_t i = 0; i < kQuantBlock; ++i) v[i] = bf16_to_f32(static_cast<const uint16_t*>(weights)[begin + i]);
  } else {
    for (int64_t i = 0; i < kQuantBlock; ++i) v[i] = f16_to_f32(static_cast<const uint16_t*>(weights)[begin + i]);
  }
}

void store_scale(float d, uint8_t* out) {
  const uint16_t bits = f32_to_f16(d);
  std::memcpy(out, &bits, sizeof bits);
}

void store_q8(const float* v, float extreme, uint8_t* out) {
  const float d = to_half(std::fabs(extreme) / 127), inverse = inverse_of(d);
  int8_t q[kQuantBlock];
  for (int64_t i = 0; i < kQuantBlock; ++i) q[i] = static_cast<int8_t>(code(v[i], inverse, -127, 127));
  store_scale(d, out);
  std::memcpy(out + 2, q, sizeof q);
}

void store_q4(const float* v, float extreme, uint8_t* out) {
  const float d = best_q4_scale(v, extreme), inverse = inverse_of(d);
  int32_t q[kQuantBlock];
  for (int64_t i = 0; i < kQuantBlock; ++i) q[i] = static_cast<int32_t>(code(v[i], inverse, kQ4Lowest, kQ4Highest)) + 8;
  store_scale(d, out);
  for (int i = 0; i < 16; ++i) out[2 + i] = static_cast<uint8_t>(q[i] | q[i + 16] << 4);
}

}  // namespace

bool quantize(const void* weights, DType from, int64_t n, DType to, uint8_t* out) {
  float v[kQuantBlock];
  for (int64_t begin = 0; begin < n; begin += kQuantBlock) {
    load_block(weights, from, begin, v);
    const float extreme = extreme_of(v);
    if (!(std::fabs(extreme) <= kMaxQuantisable)) return false;
    uint8_t* const block = out + dtype_bytes(to, begin);
    if (to == DType::kQ8_0) {
      store_q8(v, extreme, block);
    } else {
      store_q4(v, extreme, block);
    }
  }
  return true;
}

}  // namespace m4j
