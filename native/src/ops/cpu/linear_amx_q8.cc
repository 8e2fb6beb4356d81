// Linear of int8 weights in blocks (Q8_0) on AMX tiles, several tokens at once; see blocks-inl.h.
#include <algorithm>

#include "ops/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_amx_q8.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/blocks-inl.h"
#include "ops/cpu/tiles-inl.h"

#if M4J_AMX && HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

void LinearDot(const LinearArgs&, const Share&);
int64_t LinearDotScratch(int64_t in, DType weight_dtype);

namespace {

constexpr int64_t kSplitBytes = 1024 * 1024;  // of split tokens: half of the second-level cache
constexpr int64_t kGroup = 4;                 // steps whose sums are written before any is read

// A step of 16 tokens: digit j, the lowest first, of each quad; and what an integer counts.
struct TokensStep {
  alignas(64) int32_t digits[kDigits][kQuads][16];
  float unit[16];
};

// At most 16 tokens; the last one fills the rest.
void split(const float* x, int64_t ld, int64_t tokens, int64_t steps, TokensStep* out) {
  for (int64_t s = 0; s < steps; ++s, x += kDepth, ++out) {
    alignas(64) float columns[kDepth][16];
    __m512i largest = _mm512_setzero_si512();
    for (int64_t half = 0; half < kDepth; half += 16) {
      __m512 v[16];
#pragma GCC unroll 16
      for (int64_t t = 0; t < 16; ++t) v[t] = _mm512_loadu_ps(x + std::min(t, tokens - 1) * ld + half);
      transpose(v);
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) {
        largest = _mm512_max_epi32(largest, magnitude(Vec{v[i]}).raw);
        _mm512_store_ps(columns[half + i], v[i]);
      }
    }
    Vec unit;
    const Vec factor = to_integers(Ints{largest}, &unit);
    _mm512_store_ps(out->unit, unit.raw);
    for (int64_t q = 0; q < kQuads; ++q) {
      __m512i d[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) d[i] = digits_of(Vec{_mm512_load_ps(columns[4 * q + i])}, factor).raw;
#pragma GCC unroll 2
      for (unsigned j = 0; j < kDigits; ++j) {
        __m512i quad = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; ++i) {
          const __m512i digit = _mm512_and_si512(_mm512_srli_epi32(d[i], 8 * j), _mm512_set1_epi32(255));
          quad = _mm512_or_si512(quad, _mm512_slli_epi32(digit, 8 * i));
        }
        _mm512_store_si512(out->digits[j][q], quad);
      }
    }
  }
}

// The step of the next strip, from the second-level cache, and of the third one, from memory.
void prefetch(const Strip<Q8Block>& w, int64_t step) {
  const uint8_t* p = w.at(step) + kRows * w.stride;
  for (int64_t r = 0; r < kRows; ++r) {
    __builtin_prefetch(p + (r + 2 * kRows) * w.stride, 0, 2);
    __builtin_prefetch(p + r * w.stride, 0, 3);
  }
}

// c: [16 outputs, 16 tokens]. scales: [steps, 16 outputs]. ahead: whether to ask for the next strip.
void multiply(const Strip<Q8Block>& w, const float* scales, const TokensStep* x, int64_t steps, bool ahead, float* c) {
  alignas(64) int32_t sums[kGroup][kDigits][kRows][16];
  const IntTag d;
  Vec acc[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) acc[i] = hn::Zero(VecTag());
  for (int64_t group = 0; group < steps; group += kGroup) {
    const int64_t count = std::min(kGroup, steps - group);
    for (int64_t s = 0; s < count; ++s) {
      const TokensStep& xs = x[group + s];
      if (ahead) prefetch(w, group + s);
      tile_load<4>(w.at(group + s) + kScaleBytes, w.stride);
      tile_zero<0>(), tile_zero<1>();
      tile_load<6>(xs.digits[0], kLineBytes);
      tile_dot_bytes<0, 4, 6>();
      tile_load<7>(xs.digits[1], kLineBytes);
      tile_dot_bytes<1, 4, 7>();
      tile_store<0>(sums[s][0], kLineBytes);
      tile_store<1>(sums[s][1], kLineBytes);
    }
    for (int64_t s = 0; s < count; ++s) {
      const Vec unit = hn::Load(VecTag(), x[group + s].unit);
      const float* scale = scales + (group + s) * kRows;
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i)
        acc[i] = add_block(acc[i], hn::Load(d, sums[s][0][i]), hn::Load(d, sums[s][1][i]), hn::Set(VecTag(), scale[i]),
                           unit);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) hn::Store(acc[i], VecTag(), c + 16 * i);
}

int64_t split_tiles(int64_t steps) {
  return std::max<int64_t>(1, kSplitBytes / (steps * static_cast<int64_t>(sizeof(TokensStep))));
}

// Split tokens stay in the second-level cache while the weights pass.
void many_tokens(const LinearArgs& a, const Part& part, uint8_t* copy, float* scratch) {
  const int64_t steps = a.in / kDepth, block = split_tiles(steps) * kRows;
  float* scales = scratch;
  auto* x = reinterpret_cast<TokensStep*>(scales + steps * kRows);
  alignas(64) float c[kRows * kRows];
  const Tiles tiles(kRows, kQuantBlock);
  for (int64_t first = part.first; first < part.last; first += block) {
    const int64_t last = std::min(first + block, part.last);
    for (int64_t t = first; t < last; t += kRows)
      split(a.x + t * a.ld_x, a.ld_x, last - t, steps, x + (t - first) / kRows * steps);
    for (int64_t n = part.begin; n < part.end; n += kRows) {
      const int64_t rows = std::min(kRows, part.end - n);
      const Strip<Q8Block> strip = strip_at<Q8Block>(a, n, rows, copy);
      for (int64_t s = 0; s < steps; ++s) hn::Store(load_scales(strip.rows(s)), VecTag(), scales + s * kRows);
      for (int64_t t = first; t < last; t += kRows) {
        multiply(strip, scales, x + (t - first) / kRows * steps, steps, t == first, c);
        store_outputs<kRows>(a, c, t, std::min(kRows, last - t), n, rows);
      }
    }
  }
}

}  // namespace

void LinearAmxQ8(const LinearArgs& a, const Share& share) {
  if (a.tokens == 1) return LinearDot(a, share);
  const Part part(a, share, {48, 210, 150});
  if (part.empty()) return;
  auto* copy = reinterpret_cast<uint8_t*>(share.scratch);
  many_tokens(a, part, copy, share.scratch + copy_bytes<Q8Block>(a.in) / static_cast<int64_t>(sizeof(float)));
}

int64_t LinearAmxQ8Scratch(int64_t in) {
  const int64_t steps = in / kDepth, tokens = split_tiles(steps) * static_cast<int64_t>(sizeof(TokensStep));
  const int64_t bytes = copy_bytes<Q8Block>(in) + steps * (kRows * static_cast<int64_t>(sizeof(float)) + tokens);
  return std::max(bytes / static_cast<int64_t>(sizeof(float)), LinearDotScratch(in, DType::kQ8_0));
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#endif
