#include "ops/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/half.h"

namespace m4j {
namespace {

constexpr float kMaxHalf = 65504.0f;

// The block's codes for scale d (already a float16 value), and their squared error.
float encode(const float* v, float d, int lowest, int highest, int8_t* q) {
  const float inverse = d == 0 ? 0 : 1 / d;
  float error = 0;
  for (int64_t i = 0; i < kQuantBlock; ++i) {
    const float code = std::clamp(std::nearbyintf(v[i] * inverse), static_cast<float>(lowest), static_cast<float>(highest));
    const float e = v[i] - d * code;
    q[i] = static_cast<int8_t>(code);
    error += e * e;
  }
  return error;
}

float to_half(float d) { return f16_to_f32(f32_to_f16(std::clamp(d, -kMaxHalf, kMaxHalf))); }

// Scales to begin with, as fractions of the one that maps the largest weight to the last code: a little clipping
// of the largest may pay for finer steps of the others.
constexpr float kQ4Starts[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 1.06f, 1.12f};

// For each start the codes, then the scale that suits these codes best, then the codes once more.
float best_q4_scale(const float* v, float extreme) {
  int8_t q[kQuantBlock];
  float best = 0, least = INFINITY;
  for (float start : kQ4Starts) {
    float d = to_half(extreme / -8 * start);
    for (int pass = 0; pass < 2; ++pass) {
      const float error = encode(v, d, -8, 7, q);
      if (error < least) {
        least = error;
        best = d;
      }
      float vq = 0, qq = 0;
      for (int64_t i = 0; i < kQuantBlock; ++i) {
        vq += v[i] * static_cast<float>(q[i]);
        qq += static_cast<float>(q[i]) * static_cast<float>(q[i]);
      }
      if (qq == 0) break;
      d = to_half(vq / qq);
    }
  }
  return best;
}

void store_scale(float d, uint8_t* out) {
  const uint16_t bits = f32_to_f16(d);
  std::memcpy(out, &bits, sizeof bits);
}

}  // namespace

void quantize(const void* weights, DType from, int64_t n, DType to, uint8_t* out) {
  float v[kQuantBlock];
  int8_t q[kQuantBlock];
  for (int64_t b = 0; b < n / kQuantBlock; ++b) {
    float extreme = 0;  // the weight of the largest magnitude, with its sign
    for (int64_t i = 0; i < kQuantBlock; ++i) {
      v[i] = load_f32(weights, from, b * kQuantBlock + i);
      if (std::fabs(v[i]) > std::fabs(extreme)) extreme = v[i];
    }
    if (to == DType::kQ8_0) {
      const float d = to_half(std::fabs(extreme) / 127);
      encode(v, d, -127, 127, q);
      store_scale(d, out);
      std::memcpy(out + 2, q, sizeof q);
      out += 34;
    } else {
      const float d = best_q4_scale(v, extreme);
      encode(v, d, -8, 7, q);
      store_scale(d, out);
      for (int i = 0; i < 16; ++i) out[2 + i] = static_cast<uint8_t>((q[i] + 8) | (q[i + 16] + 8) << 4);
      out += 18;
    }
  }
}

}  // namespace m4j
