// What the matrix products beyond Highway's operations share, on dot products of bytes, AVX-512 and AMX: sizes, lanes,
// and a team's shares of tokens x outputs. A step is 32 of `in`, the depth of a product.
#include "ops/ops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"

#if defined(M4J_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M4J_PRODUCTS_INL_H_
#undef M4J_PRODUCTS_INL_H_
#else
#define M4J_PRODUCTS_INL_H_
#endif

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || (HWY_ARCH_ARM_A64 && HWY_TARGET != HWY_SVE_256)
HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

constexpr int64_t kRows = HWY_LANES(float), kDepth = 32, kLineBytes = 64;

#if HWY_TARGET == HWY_AVX3
HWY_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xFFFF : (1 << n) - 1); }

HWY_INLINE __m512i bits(__m512 v) { return _mm512_castps_si512(v); }

// The first 16 of the n floats at p, then zeros.
HWY_INLINE __m512 load_upto16(const float* p, int64_t n) {
  return n > 0 ? _mm512_maskz_loadu_ps(first_lanes(n), p) : _mm512_setzero_ps();
}

// The first 32 of the n floats at p, then zeros, as bfloat16: rounded to the nearest, ties to even; NaN stays NaN and
// subnormal numbers become zero. For processors with AVX512_BF16.
HWY_INLINE __m512i round_pairs(const float* p, int64_t n) {
  __m512i v;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(v) : "v"(load_upto16(p, n)), "v"(load_upto16(p + 16, n - 16)));
  return v;
}
#endif

// Cycles of a member for a step: kRows tokens x kRows outputs, preparing kRows tokens, preparing kRows outputs.
struct Costs {
  int64_t products, tokens, outputs;
};

// The tokens [first, last) and outputs [begin, end) of a member: the team is the grid of both that costs least.
struct Part {
  int64_t first, last, begin, end;

  Part(const LinearArgs& a, const Share& share, const Costs& costs) {
    const auto tiles = [](int64_t n, int64_t parts) { return ((n + kRows - 1) / kRows + parts - 1) / parts; };
    int rows = 1;
    int64_t least = INT64_MAX;
    for (int parts = 1; parts <= share.count; ++parts) {
      if (share.count % parts != 0) continue;
      const int64_t x = tiles(a.tokens, parts), w = tiles(a.out_dim, share.count / parts);
      const int64_t cost = costs.products * x * w + costs.tokens * x + costs.outputs * w;
      if (cost < least) least = cost, rows = parts;
    }
    const int columns = share.count / rows;
    Share{share.index / columns, rows, nullptr, 0}.range(a.tokens, kRows, &first, &last);
    Share{share.index % columns, columns, nullptr, 0}.range(a.out_dim, kRows, &begin, &end);
  }

  bool empty() const { return first == last || begin == end; }
};

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // M4J_PRODUCTS_INL_H_
