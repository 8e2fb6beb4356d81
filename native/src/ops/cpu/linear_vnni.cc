// Linear of weights in blocks (Q8_0, Q4_0) on AVX-512's dot products of bytes (VNNI); see blocks-inl.h.
//
// A vector holds 16 outputs. Few tokens meet the codes on their way from memory, more of them a copy in the order of
// use.
#include <algorithm>
#include <cstring>

#include "ops/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_vnni.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/blocks-inl.h"

#if defined(__x86_64__) && HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

void Linear(const LinearArgs&, const Share&);
int64_t LinearScratch(int64_t in, DType weight_dtype);

namespace {

constexpr int64_t kFewTokens = 4;  // which the codes meet on their way
constexpr int64_t kTileTokens = 5, kTileVectors = 2, kTileOutputs = kTileVectors * kRows;
constexpr int64_t kSplitBytes = 512 * 1024;  // of split tokens: half of the second-level cache

// A step of a token: digit j, the lowest first, of each quad; what makes up for codes without sign; and what an integer
// counts.
struct alignas(16) TokenStep {
  int32_t digits[kQuads][kDigits];
  int32_t start[kDigits];
  float unit;
};

// A step of 16 or 32 outputs.
template <int kVectors>
struct alignas(64) WeightStep {
  uint8_t codes[kQuads][kVectors][kLineBytes];
  float scales[kVectors][kRows];
};

// Each element of sum adds the products of the four unsigned bytes of a and the signed ones of b.
HWY_INLINE void dot_bytes(__m512i& sum, __m512i a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

template <class Block>
void split(const float* x, int64_t steps, TokenStep* out) {
  const __m512i by_digit = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  for (int64_t s = 0; s < steps; ++s, x += kDepth, ++out) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const int32_t largest = _mm512_reduce_max_epi32(_mm512_max_epi32(magnitude(a), magnitude(b)));
    __m512 unit;
    const __m512 factor = to_integers(_mm512_set1_epi32(largest), &unit);
    const __m256i da = _mm512_cvtepi32_epi16(digits_of(a, factor)), db = _mm512_cvtepi32_epi16(digits_of(b, factor));
    const __m512i digits = _mm512_shuffle_epi8(_mm512_inserti64x4(_mm512_castsi256_si512(da), db, 1), by_digit);
    _mm512_storeu_si512(out->digits, digits);
    __m512i sum = _mm512_setzero_si512();
    dot_bytes(sum, _mm512_set1_epi8(1), digits);
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
    const __m128i quarter = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i total = _mm_add_epi32(quarter, _mm_unpackhi_epi64(quarter, quarter));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out->start), _mm_mullo_epi32(total, _mm_set1_epi32(-Block::kZero)));
    out->unit = _mm512_cvtss_f32(unit);
  }
}

// c: [kTokens, 16 kStrips outputs]. With few products at a time, each sum is made in two halves, which wait less.
template <class Block, int kTokens, int kStrips>
HWY_NOINLINE void multiply(const Strip<Block>& w, const TokenStep* x, int64_t steps, float* c) {
  constexpr int kChains = kTokens <= 2 ? 2 : 1;
  __m512 acc[kTokens][kStrips];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int i = 0; i < kStrips; ++i) acc[t][i] = _mm512_setzero_ps();
  }
  for (int64_t s = 0; s < steps; ++s, ++x) {
    __m512i v[kStrips][kQuads], sum[kTokens][kStrips][kChains][kDigits];
    __m512 scales[kStrips];
#pragma GCC unroll 2
    for (int i = 0; i < kStrips; ++i) {
      const Strip<Block> strip = w.next(i);
      strip.prefetch(s, kStrips);
      const Rows16 rows = strip.rows(s);
      Block::load_quads(rows, v[i]);
      scales[i] = load_scales(rows);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
      for (int j = 0; j < kDigits; ++j) {
        const __m512i start = _mm512_set1_epi32(x[t * steps].start[j]);
#pragma GCC unroll 2
        for (int i = 0; i < kStrips; ++i) {
          sum[t][i][0][j] = start;
          if constexpr (kChains > 1) sum[t][i][1][j] = _mm512_setzero_si512();
        }
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; ++q) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
        for (int j = 0; j < kDigits; ++j) {
          const __m512i digit = _mm512_set1_epi32(x[t * steps].digits[q][j]);
#pragma GCC unroll 2
          for (int i = 0; i < kStrips; ++i) dot_bytes(sum[t][i][q % kChains][j], v[i][q], digit);
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const __m512 unit = _mm512_set1_ps(x[t * steps].unit);
#pragma GCC unroll 2
      for (int i = 0; i < kStrips; ++i) {
        __m512i(&d)[kDigits] = sum[t][i][0];
        if constexpr (kChains > 1) {
#pragma GCC unroll 2
          for (int j = 0; j < kDigits; ++j) d[j] = _mm512_add_epi32(d[j], sum[t][i][1][j]);
        }
        acc[t][i] = add_block(acc[t][i], d[0], d[1], scales[i], unit);
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int i = 0; i < kStrips; ++i) _mm512_store_ps(c + (t * kStrips + i) * kRows, acc[t][i]);
  }
}

template <class Block, int kVectors>
void pack(const Strip<Block> (&strips)[kTileVectors], int64_t steps, WeightStep<kVectors>* out) {
  for (int64_t s = 0; s < steps; ++s, ++out) {
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) {
      __m512i v[kQuads];
      const Rows16 rows = strips[i].rows(s);
      Block::load_quads(rows, v);
#pragma GCC unroll 8
      for (int q = 0; q < kQuads; ++q) _mm512_store_si512(out->codes[q][i], v[q]);
      _mm512_store_ps(out->scales[i], load_scales(rows));
    }
  }
}

// The same of a copy. The sums of a block take most registers, so c takes the outputs. ahead: null, or the strips of w,
// whose successors are asked for. Never inlined: among its callers' variables it loses a quarter of its speed.
template <class Block, int kTokens, int kVectors>
HWY_NOINLINE void multiply(const WeightStep<kVectors>* w, const TokenStep* x, int64_t steps, const Strip<Block>* ahead,
                           float* c) {
  std::memset(c, 0, sizeof(float) * kTokens * kVectors * kRows);
  for (int64_t s = 0; s < steps; ++s, ++w, ++x) {
    if (ahead != nullptr) {
      for (int i = 0; i < kVectors; ++i) ahead[i].prefetch(s, kVectors);
    }
    __m512i sum[kTokens][kVectors][kDigits];
#pragma GCC unroll 5
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
      for (int j = 0; j < kDigits; ++j) {
        const __m512i start = _mm512_set1_epi32(x[t * steps].start[j]);
#pragma GCC unroll 2
        for (int i = 0; i < kVectors; ++i) sum[t][i][j] = start;
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; ++q) {
      __m512i v[kVectors];
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) v[i] = _mm512_load_si512(w->codes[q][i]);
#pragma GCC unroll 5
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
        for (int j = 0; j < kDigits; ++j) {
          const __m512i digit = _mm512_set1_epi32(x[t * steps].digits[q][j]);
#pragma GCC unroll 2
          for (int i = 0; i < kVectors; ++i) dot_bytes(sum[t][i][j], v[i], digit);
        }
      }
    }
#pragma GCC unroll 5
    for (int t = 0; t < kTokens; ++t) {
      const __m512 unit = _mm512_set1_ps(x[t * steps].unit);
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) {
        float* acc = c + (t * kVectors + i) * kRows;
        _mm512_store_ps(acc, add_block(_mm512_load_ps(acc), sum[t][i][0], sum[t][i][1],
                                       _mm512_load_ps(w->scales[i]), unit));
      }
    }
  }
}

// c, [tokens, 16 vectors], to the outputs [n, n + rows) of tokens from t on.
void store_outputs(const LinearArgs& a, const float* c, int64_t vectors, int64_t t, int64_t tokens, int64_t n,
                   int64_t rows) {
  for (int64_t i = 0; i < vectors; ++i) {
    const __mmask16 mask = first_lanes(rows - i * kRows);
    const int64_t first = n + i * kRows;
    const __m512 bias = a.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, a.bias + first);
    for (int64_t j = 0; j < tokens; ++j)
      _mm512_mask_storeu_ps(a.out + (t + j) * a.ld_out + first, mask,
                            _mm512_add_ps(_mm512_load_ps(c + (j * vectors + i) * kRows), bias));
  }
}

int64_t split_tokens(int64_t steps) {
  const int64_t bytes = steps * static_cast<int64_t>(sizeof(TokenStep));
  return std::max(kFewTokens, kSplitBytes / bytes / kTileTokens * kTileTokens);
}

// The weights pass once.
template <class Block, int kTokens>
void few_tokens(const LinearArgs& a, const Part& part, uint8_t* copy, const TokenStep* x) {
  constexpr int kStrips = kTokens == 1 ? 2 : 1;
  const int64_t steps = a.in / kDepth;
  alignas(64) float c[kTokens * kStrips * kRows];
  int64_t n = part.begin;
  for (; n + kStrips * kRows <= part.end; n += kStrips * kRows) {
    multiply<Block, kTokens, kStrips>(strip_at<Block>(a, n, kRows, copy), x, steps, c);
    store_outputs(a, c, kStrips, 0, kTokens, n, kStrips * kRows);
  }
  for (; n < part.end; n += kRows) {
    const int64_t rows = std::min(kRows, part.end - n);
    multiply<Block, kTokens, 1>(strip_at<Block>(a, n, rows, copy), x, steps, c);
    store_outputs(a, c, 1, 0, kTokens, n, rows);
  }
}

template <class Block, int kTokens = kFewTokens>
void any_few_tokens(const LinearArgs& a, const Part& part, uint8_t* copy, const TokenStep* x) {
  if (a.tokens == kTokens) {
    few_tokens<Block, kTokens>(a, part, copy, x);
  } else if constexpr (kTokens > 1) {
    any_few_tokens<Block, kTokens - 1>(a, part, copy, x);
  }
}

// multiply of a tile, or of what is left of one.
template <class Block, int kVectors, int kTokens = kTileTokens>
void multiply_upto(int64_t tokens, const WeightStep<kVectors>* w, const TokenStep* x, int64_t steps,
                   const Strip<Block>* ahead, float* c) {
  if (tokens == kTokens) {
    multiply<Block, kTokens, kVectors>(w, x, steps, ahead, c);
  } else if constexpr (kTokens > 1) {
    multiply_upto<Block, kVectors, kTokens - 1>(tokens, w, x, steps, ahead, c);
  }
}

// The outputs [n, n + rows), at most 16 kVectors, of the tokens [first, last), whose split form begins at x.
template <class Block, int kVectors>
void sweep(const LinearArgs& a, int64_t first, int64_t last, int64_t n, int64_t rows, const TokenStep* x, uint8_t* copy,
           void* packed) {
  const int64_t steps = a.in / kDepth;
  auto* w = static_cast<WeightStep<kVectors>*>(packed);
  alignas(64) float c[kTileTokens * kVectors * kRows];
  Strip<Block> strips[kTileVectors];
  for (int64_t i = 0; i < kVectors; ++i) strips[i] = strip_at<Block>(a, n + i * kRows, rows - i * kRows, copy);
  pack<Block, kVectors>(strips, steps, w);
  for (int64_t t = first; t < last; t += kTileTokens) {
    const int64_t tokens = std::min(kTileTokens, last - t);
    multiply_upto<Block, kVectors>(tokens, w, x + (t - first) * steps, steps, t == first ? strips : nullptr, c);
    store_outputs(a, c, kVectors, t, tokens, n, rows);
  }
}

// Split tokens stay in the second-level cache while the weights pass.
template <class Block>
void many_tokens(const LinearArgs& a, const Part& part, uint8_t* copy, TokenStep* x, void* packed) {
  const int64_t steps = a.in / kDepth, block = split_tokens(steps);
  for (int64_t first = part.first; first < part.last; first += block) {
    const int64_t last = std::min(first + block, part.last);
    for (int64_t t = first; t < last; ++t) split<Block>(a.x + t * a.ld_x, steps, x + (t - first) * steps);
    for (int64_t n = part.begin; n < part.end; n += kTileOutputs) {
      const int64_t rows = std::min(kTileOutputs, part.end - n);
      rows > kRows ? sweep<Block, 2>(a, first, last, n, rows, x, copy, packed)
                   : sweep<Block, 1>(a, first, last, n, rows, x, copy, packed);
    }
  }
}

// Bytes of a member's scratch memory: packed outputs, a copied strip, split tokens.
struct Scratch {
  int64_t packed, copy, tokens;

  Scratch(int64_t in, int64_t copied) {
    const int64_t steps = in / kDepth;
    packed = steps * static_cast<int64_t>(sizeof(WeightStep<kTileVectors>));
    copy = copied;
    tokens = split_tokens(steps) * steps * static_cast<int64_t>(sizeof(TokenStep));
  }
};

template <class Block>
void linear(const LinearArgs& a, const Share& share) {
  const Part part(a, share, {148, 320, 35});
  if (part.empty()) return;
  const Scratch sizes(a.in, copy_bytes<Block>(a.in));
  auto* packed = reinterpret_cast<uint8_t*>(share.scratch);
  uint8_t* copy = packed + sizes.packed;
  auto* x = reinterpret_cast<TokenStep*>(copy + sizes.copy);
  if (a.tokens > kFewTokens) return many_tokens<Block>(a, part, copy, x, packed);
  for (int64_t t = 0; t < a.tokens; ++t) split<Block>(a.x + t * a.ld_x, a.in / kDepth, x + t * (a.in / kDepth));
  any_few_tokens<Block>(a, part, copy, x);
}

}  // namespace

void LinearVnni(const LinearArgs& a, const Share& share) {
  if (a.weight_dtype == DType::kQ8_0) return linear<Q8Block>(a, share);
  if (a.weight_dtype == DType::kQ4_0) return linear<Q4Block>(a, share);
  Linear(a, share);
}

int64_t LinearVnniScratch(int64_t in, DType dtype) {
  if (!is_quantised(dtype)) return LinearScratch(in, dtype);
  const Scratch sizes(in, dtype == DType::kQ8_0 ? copy_bytes<Q8Block>(in) : copy_bytes<Q4Block>(in));
  return (sizes.packed + sizes.copy + sizes.tokens) / static_cast<int64_t>(sizeof(float));
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#endif
