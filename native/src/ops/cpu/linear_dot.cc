// Linear of weights in blocks (Q8_0, Q4_0) on dot products of bytes: VNNI of AVX-512 or AVX2, or ARM's dotprod, which
// SVE of 256 bits borrows from NEON. See blocks-inl.h.
//
// A vector holds kRows outputs. Few tokens meet the codes on their way from memory, more of them a copy in the order of
// use.
#include <algorithm>
#include <cstring>

#include "ops/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_dot.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/blocks-inl.h"

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || (HWY_ARCH_ARM_A64 && HWY_TARGET != HWY_SVE_256)

HWY_BEFORE_NAMESPACE();
#if HWY_ARCH_ARM_A64
HWY_PUSH_ATTRIBUTES("arch=armv8.2-a+crypto+dotprod")
#endif
namespace m4j {
namespace HWY_NAMESPACE {

void Linear(const LinearArgs&, const Share&);
int64_t LinearScratch(int64_t in, DType weight_dtype);

namespace {

// Tokens that the codes meet on their way, and tokens in a tile of a copy, so that all sums stay in registers.
constexpr int64_t kFewTokens = HWY_TARGET == HWY_AVX2 ? 1 : 4;
constexpr int64_t kTileTokens = HWY_TARGET == HWY_AVX2 ? 3 : 5, kTileVectors = 2, kTileOutputs = kTileVectors * kRows;
// Measured on Zen 5; ARM has AVX2's.
constexpr Costs kCosts = HWY_TARGET == HWY_AVX3 ? Costs{148, 320, 35} : Costs{62, 140, 18};
constexpr int64_t kSplitBytes = 512 * 1024;  // of split tokens: half of the second-level cache

// A step of a token: digit j, the lowest first, of each quad; what makes up for codes without sign; and what an integer
// counts.
struct alignas(16) TokenStep {
  int32_t digits[kQuads][kDigits];
  int32_t start[kDigits];
  float unit;
};

// A step of one or two vectors of outputs.
template <int kVectors>
struct alignas(64) WeightStep {
  int32_t codes[kQuads][kVectors][kRows];
  float scales[kVectors][kRows];
};

// Each element of sum adds the products of the four bytes of a, unsigned on x86, and the signed ones of b.
HWY_INLINE void dot_bytes(Ints& sum, Ints a, Ints b) {
#if HWY_TARGET == HWY_AVX3
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
#elif HWY_ARCH_ARM_A64
  sum.raw = vdotq_s32(sum.raw, vreinterpretq_s8_s32(a.raw), vreinterpretq_s8_s32(b.raw));
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.raw) : "x"(a.raw), "x"(b.raw));
#endif
}

// The same of digit j of quad q, for all outputs. ARM takes it from its place among others.
HWY_INLINE void dot_digit(Ints& sum, Ints codes, const TokenStep& x, int64_t q, int64_t j) {
#if HWY_ARCH_ARM_A64
  const int8x16_t c = vreinterpretq_s8_s32(codes.raw), quads = vreinterpretq_s8_s32(vld1q_s32(x.digits[q - q % 2]));
  switch (q % 2 * kDigits + j) {
    case 0: sum.raw = vdotq_laneq_s32(sum.raw, c, quads, 0); break;
    case 1: sum.raw = vdotq_laneq_s32(sum.raw, c, quads, 1); break;
    case 2: sum.raw = vdotq_laneq_s32(sum.raw, c, quads, 2); break;
    default: sum.raw = vdotq_laneq_s32(sum.raw, c, quads, 3);
  }
#else
  dot_bytes(sum, codes, hn::Set(IntTag(), x.digits[q][j]));
#endif
}

// The digits of a step in the order of TokenStep, and `start` times the sums of each.
HWY_INLINE void split_step(const float* x, Vec factor, int32_t start, TokenStep* out) {
  const IntTag d;
  const Ints ones = hn::Set(d, 0x01010101);
  const auto digits = [&](int64_t k) { return digits_of(hn::LoadU(VecTag(), x + k), factor).raw; };
  int32_t* HWY_RESTRICT to = *out->digits;
  Ints sums = hn::Zero(d);  // of digits 0 and 1 in turn
#if HWY_ARCH_ARM_A64
  constexpr uint8_t kByDigit[16] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
  const uint8x16_t by_digit = vld1q_u8(kByDigit);
#pragma GCC unroll 4
  for (int64_t k = 0; k < kDepth; k += 8, to += 4) {
    const int16x8_t v = vuzp1q_s16(vreinterpretq_s16_s32(digits(k)), vreinterpretq_s16_s32(digits(k + 4)));
    const Ints quads{vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s16(v), by_digit))};
    hn::StoreU(quads, d, to);
    dot_bytes(sums, ones, quads);
  }
  vst1_s32(out->start, vmul_n_s32(vadd_s32(vget_low_s32(sums.raw), vget_high_s32(sums.raw)), start));
#else
  const __m128i by_digit = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
#if HWY_TARGET == HWY_AVX3
  const __m256i low = _mm512_cvtepi32_epi16(digits(0)), high = _mm512_cvtepi32_epi16(digits(16));
  const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  const Ints quads{_mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(by_digit))};
  hn::StoreU(quads, d, to);
  dot_bytes(sums, ones, quads);
  const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(sums.raw), _mm512_extracti64x4_epi64(sums.raw, 1));
#else
#pragma GCC unroll 2
  for (int64_t k = 0; k < kDepth; k += 16, to += 8) {
    const __m256i v = _mm256_permute4x64_epi64(_mm256_packus_epi32(digits(k), digits(k + 8)), 0xD8);
    const Ints quads{_mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(by_digit))};
    hn::StoreU(quads, d, to);
    dot_bytes(sums, ones, quads);
  }
  const __m256i eight = sums.raw;
#endif
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out->start), _mm_mullo_epi32(two, _mm_set1_epi32(start)));
#endif
}

template <class Block>
void split(const float* x, int64_t steps, TokenStep* out) {
  const IntTag d;
  for (int64_t s = 0; s < steps; ++s, x += kDepth, ++out) {
    Ints largest = magnitude(hn::LoadU(VecTag(), x));
    for (int64_t k = kLanes; k < kDepth; k += kLanes) largest = hn::Max(largest, magnitude(hn::LoadU(VecTag(), x + k)));
    Vec unit;
    const Vec factor = to_integers(hn::MaxOfLanes(d, largest), &unit);
    split_step(x, factor, -Block::kZero, out);
    out->unit = hn::GetLane(unit);
  }
}

// c: [kTokens, kStrips * kRows outputs]. With few products at a time, each sum is made in two halves, which wait less.
template <class Block, int kTokens, int kStrips>
HWY_NOINLINE void multiply(const Strip<Block>& w, const TokenStep* x, int64_t steps, float* c) {
  constexpr int kChains = kTokens <= 2 ? 2 : 1;
  const IntTag d32;
  Vec acc[kTokens][kStrips];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int i = 0; i < kStrips; ++i) acc[t][i] = hn::Zero(VecTag());
  }
  for (int64_t s = 0; s < steps; ++s, ++x) {
    Ints v[kStrips][kQuads], sum[kTokens][kStrips][kChains][kDigits];
    Vec scales[kStrips];
#pragma GCC unroll 2
    for (int i = 0; i < kStrips; ++i) {
      const Strip<Block> strip = w.next(i);
      strip.prefetch(s, kStrips);
      const RowsOfBytes rows = strip.rows(s);
      Block::load_quads(rows, v[i]);
      scales[i] = load_scales(rows);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
      for (int j = 0; j < kDigits; ++j) {
        const Ints start = hn::Set(d32, x[t * steps].start[j]);
#pragma GCC unroll 2
        for (int i = 0; i < kStrips; ++i) {
          sum[t][i][0][j] = start;
          if constexpr (kChains > 1) sum[t][i][1][j] = hn::Zero(d32);
        }
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; ++q) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
        for (int j = 0; j < kDigits; ++j) {
#pragma GCC unroll 2
          for (int i = 0; i < kStrips; ++i) dot_digit(sum[t][i][q % kChains][j], v[i][q], x[t * steps], q, j);
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const Vec unit = hn::Set(VecTag(), x[t * steps].unit);
#pragma GCC unroll 2
      for (int i = 0; i < kStrips; ++i) {
        Ints(&d)[kDigits] = sum[t][i][0];
        if constexpr (kChains > 1) {
#pragma GCC unroll 2
          for (int j = 0; j < kDigits; ++j) d[j] = hn::Add(d[j], sum[t][i][1][j]);
        }
        acc[t][i] = add_block(acc[t][i], d[0], d[1], scales[i], unit);
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int i = 0; i < kStrips; ++i) hn::Store(acc[t][i], VecTag(), c + (t * kStrips + i) * kRows);
  }
}

template <class Block, int kVectors>
void pack(const Strip<Block> (&strips)[kTileVectors], int64_t steps, WeightStep<kVectors>* out) {
  for (int64_t s = 0; s < steps; ++s, ++out) {
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) {
      Ints v[kQuads];
      const RowsOfBytes rows = strips[i].rows(s);
      Block::load_quads(rows, v);
#pragma GCC unroll 8
      for (int q = 0; q < kQuads; ++q) hn::Store(v[q], IntTag(), out->codes[q][i]);
      hn::Store(load_scales(rows), VecTag(), out->scales[i]);
    }
  }
}

// The same of a copy. The sums of a block take most registers, so c takes the outputs. ahead: null, or the strips of w,
// whose successors are asked for. Never inlined: among its callers' variables it loses a quarter of its speed.
template <class Block, int kTokens, int kVectors>
HWY_NOINLINE void multiply(const WeightStep<kVectors>* w, const TokenStep* x, int64_t steps, const Strip<Block>* ahead,
                           float* c) {
  const IntTag d32;
  std::memset(c, 0, sizeof(float) * kTokens * kVectors * kRows);
  for (int64_t s = 0; s < steps; ++s, ++w, ++x) {
    if (ahead != nullptr) {
      for (int i = 0; i < kVectors; ++i) ahead[i].prefetch(s, kVectors);
    }
    Ints sum[kTokens][kVectors][kDigits];
#pragma GCC unroll 5
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
      for (int j = 0; j < kDigits; ++j) {
        const Ints start = hn::Set(d32, x[t * steps].start[j]);
#pragma GCC unroll 2
        for (int i = 0; i < kVectors; ++i) sum[t][i][j] = start;
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; ++q) {
      Ints v[kVectors];
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) v[i] = hn::Load(d32, w->codes[q][i]);
#pragma GCC unroll 5
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
        for (int j = 0; j < kDigits; ++j) {
#pragma GCC unroll 2
          for (int i = 0; i < kVectors; ++i) dot_digit(sum[t][i][j], v[i], x[t * steps], q, j);
        }
      }
    }
#pragma GCC unroll 5
    for (int t = 0; t < kTokens; ++t) {
      const Vec unit = hn::Set(VecTag(), x[t * steps].unit);
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) {
        float* acc = c + (t * kVectors + i) * kRows;
        const Vec scale = hn::Load(VecTag(), w->scales[i]);
        hn::Store(add_block(hn::Load(VecTag(), acc), sum[t][i][0], sum[t][i][1], scale, unit), VecTag(), acc);
      }
    }
  }
}

template <class Span>
HWY_INLINE void store_vector(const LinearArgs& a, const float* c, int64_t ld_c, int64_t t, int64_t tokens, int64_t n,
                             Span span) {
  const Vec bias = a.bias == nullptr ? hn::Zero(VecTag()) : span.load(a.bias + n);
  for (int64_t j = 0; j < tokens; ++j)
    span.store(hn::Add(hn::Load(VecTag(), c + j * ld_c), bias), a.out + (t + j) * a.ld_out + n);
}

// c, [tokens, vectors * kRows], to the outputs [n, n + rows) of tokens from t on.
void store_outputs(const LinearArgs& a, const float* c, int64_t vectors, int64_t t, int64_t tokens, int64_t n,
                   int64_t rows) {
  for (int64_t i = 0; i < rows; i += kRows) {
    if (rows - i >= kRows) {
      store_vector(a, c + i, vectors * kRows, t, tokens, n + i, Whole());
    } else {
      store_vector(a, c + i, vectors * kRows, t, tokens, n + i, Rest{rows - i});
    }
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

// The outputs [n, n + rows), at most kVectors * kRows, of the tokens [first, last), whose split form begins at x.
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
  const Part part(a, share, kCosts);
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

void LinearDot(const LinearArgs& a, const Share& share) {
  if (a.weight_dtype == DType::kQ8_0) return linear<Q8Block>(a, share);
  if (a.weight_dtype == DType::kQ4_0) return linear<Q4Block>(a, share);
  Linear(a, share);
}

int64_t LinearDotScratch(int64_t in, DType dtype) {
  if (!is_quantised(dtype)) return LinearScratch(in, dtype);
  const Scratch sizes(in, dtype == DType::kQ8_0 ? copy_bytes<Q8Block>(in) : copy_bytes<Q4Block>(in));
  return (sizes.packed + sizes.copy + sizes.tokens) / static_cast<int64_t>(sizeof(float));
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
#if HWY_ARCH_ARM_A64
HWY_POP_ATTRIBUTES
#endif
HWY_AFTER_NAMESPACE();

#elif HWY_TARGET == HWY_SVE_256

namespace m4j {
namespace N_NEON {
void LinearDot(const LinearArgs&, const Share&);
int64_t LinearDotScratch(int64_t in, DType weight_dtype);
}  // namespace N_NEON

namespace HWY_NAMESPACE {

void Linear(const LinearArgs&, const Share&);
int64_t LinearScratch(int64_t in, DType weight_dtype);

void LinearDot(const LinearArgs& a, const Share& share) {
  is_quantised(a.weight_dtype) ? N_NEON::LinearDot(a, share) : Linear(a, share);
}

int64_t LinearDotScratch(int64_t in, DType dtype) {
  return is_quantised(dtype) ? N_NEON::LinearDotScratch(in, dtype) : LinearScratch(in, dtype);
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j

#endif
