// Linear of int8 weights in blocks (Q8_0) on AMX tiles; a single token on AVX-512's dot products of bytes (VNNI).
//
// The 32 activations that meet a block become integers of 24 bits in a common unit, as if all were rounded like the
// largest of them, and these three signed digits of 8 bits. Codes times digits add up exactly, in whatever order; the
// block's sum is then rounded, scaled and added in float32, block by block. So each output has the same bits from both
// units, for one token and for a thousand.
#include <algorithm>
#include <cstring>

#include "ops/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_amx_q8.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/tiles-inl.h"

#if M4J_AMX && HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kBlockBytes = 34, kScaleBytes = 2, kStripBytes = kRows * kBlockBytes;  // of a step
constexpr int64_t kDigits = 3, kQuads = kQuantBlock / 4;
constexpr int64_t kSplitBytes = 1024 * 1024;  // of split tokens: half of the second-level cache
constexpr int64_t kGroup = 4;                 // steps whose sums are written before any is read

// A step of activations: digit j, the lowest first, of 32 numbers, four in an element; and what an integer counts.
struct TokenStep {
  alignas(64) int32_t digits[kDigits][kQuads];
  int32_t start[kDigits];  // what makes up for codes without sign
  float unit;
};
struct TokensStep {
  alignas(64) int32_t digits[kDigits][kQuads][16];
  float unit[16];
};

HWY_INLINE __m512i magnitude(__m512 v) { return _mm512_and_si512(bits(v), _mm512_set1_epi32(0x7FFFFFFF)); }

// For numbers up to `largest`, the bits of one: the factor, a power of two, that makes them integers within three
// digits, and its inverse; NaN if not all are finite. Three digits reach 127 (1 + 2^8 + 2^16), a little less than 2^23:
// hence the carry. Below 2^-104 the unit stays, for its inverse to be normal.
HWY_INLINE __m512 to_integers(__m512i largest, __m512* unit) {
  const __m512i exponent = _mm512_max_epi32(
      _mm512_srli_epi32(_mm512_add_epi32(largest, _mm512_set1_epi32(0x20000)), 23), _mm512_set1_epi32(23));
  const __mmask16 finite = _mm512_cmplt_epi32_mask(largest, _mm512_set1_epi32(0x7F800000));
  *unit = _mm512_castsi512_ps(_mm512_mask_slli_epi32(_mm512_set1_epi32(0x7FC00000), finite,
                                                     _mm512_sub_epi32(exponent, _mm512_set1_epi32(22)), 23));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(2 * 127 + 22), exponent), 23));
}

// Byte j of each element: signed digit j.
HWY_INLINE __m512i digits_of(__m512 x, __m512 factor) {
  const __m512i middle = _mm512_set1_epi32(0x808080);
  return _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, factor)), middle), middle);
}

void split(const float* x, int64_t steps, TokenStep* out) {
  for (int64_t s = 0; s < steps; ++s, x += kDepth, ++out) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const int32_t largest = _mm512_reduce_max_epi32(_mm512_max_epi32(magnitude(a), magnitude(b)));
    __m512 unit;
    const __m512 factor = to_integers(_mm512_set1_epi32(largest), &unit);
    const __m512i da = digits_of(a, factor), db = digits_of(b, factor);
    for (unsigned j = 0; j < kDigits; ++j) {
      int8_t digits[kDepth];
      _mm_storeu_si128(reinterpret_cast<__m128i*>(digits), _mm512_cvtepi32_epi8(_mm512_srli_epi32(da, 8 * j)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + 16), _mm512_cvtepi32_epi8(_mm512_srli_epi32(db, 8 * j)));
      int32_t sum = 0;
      for (int8_t d : digits) sum += d;
      std::memcpy(out->digits[j], digits, kDepth);
      out->start[j] = -128 * sum;
    }
    out->unit = _mm512_cvtss_f32(unit);
  }
}

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
        largest = _mm512_max_epi32(largest, magnitude(v[i]));
        _mm512_store_ps(columns[half + i], v[i]);
      }
    }
    __m512 unit;
    const __m512 factor = to_integers(largest, &unit);
    _mm512_store_ps(out->unit, unit);
    for (int64_t q = 0; q < kQuads; ++q) {
      __m512i d[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) d[i] = digits_of(_mm512_load_ps(columns[4 * q + i]), factor);
#pragma GCC unroll 3
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

// acc + the products of a block, of which d are the sums with each digit. Scales come before units, for products that
// stay normal.
HWY_INLINE __m512 add_block(__m512 acc, __m512i d0, __m512i d1, __m512i d2, __m512 scale, __m512 unit) {
  const __m512 high = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(d2, 8), d1));
  const __m512 sum = _mm512_fmadd_ps(high, _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(d0));
  return _mm512_fmadd_ps(_mm512_mul_ps(sum, scale), unit, acc);
}

// The blocks of 16 outputs, `stride` bytes from one to the next; the outputs after these begin where they end.
// Inlined by force: a call within the loop of a token costs two fifths of its speed.
struct Strip {
  const uint8_t* blocks;
  int64_t stride;

  HWY_INLINE const uint8_t* codes(int64_t step) const { return blocks + step * kBlockBytes + kScaleBytes; }

  HWY_INLINE __m512 scales(int64_t step) const {
    const __m512i row = _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi64(stride));
    const uint8_t* p = blocks + step * kBlockBytes;
    const __m256i low = _mm512_i64gather_epi32(row, p, 1), high = _mm512_i64gather_epi32(row, p + 8 * stride, 1);
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
  }

  // The step of the next strip, from the second-level cache, and of the third one, from memory.
  HWY_INLINE void prefetch(int64_t step) const {
    const uint8_t* p = blocks + kRows * stride + step * kBlockBytes;
    for (int64_t r = 0; r < kRows; ++r) {
      __builtin_prefetch(p + (r + 2 * kRows) * stride, 0, 2);
      __builtin_prefetch(p + r * stride, 0, 3);
    }
  }
};

// Each element of sum adds the products of the four unsigned bytes of a and the signed ones of b.
HWY_INLINE void dot_bytes(__m512i& sum, __m512i a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// A step's codes: v[q] is quad q of 16 outputs.
HWY_INLINE void load_quads(const uint8_t* p, int64_t stride, __m512i (&v)[kQuads]) {
  __m512i u[kQuads];
#pragma GCC unroll 8
  for (int64_t i = 0; i < 8; ++i) {  // outputs 0-3 beside 4-7, then 8-11 beside 12-15
    const uint8_t* row = p + (i < 4 ? i : i + 4) * stride;
    u[i] = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row))),
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 4 * stride)), 1);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {  // u[i + j]: quads j and j + 4
    const __m512i a = _mm512_unpacklo_epi32(u[i], u[i + 1]), b = _mm512_unpackhi_epi32(u[i], u[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(u[i + 2], u[i + 3]), d = _mm512_unpackhi_epi32(u[i + 2], u[i + 3]);
    u[i] = _mm512_unpacklo_epi64(a, c);
    u[i + 1] = _mm512_unpackhi_epi64(a, c);
    u[i + 2] = _mm512_unpacklo_epi64(b, d);
    u[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    v[j] = _mm512_shuffle_i64x2(u[j], u[j + 4], 0x88);
    v[j + 4] = _mm512_shuffle_i64x2(u[j], u[j + 4], 0xDD);
  }
}

// c: [16 outputs] of a token.
void multiply(const Strip& w, const TokenStep* x, int64_t steps, float* c) {
  __m512 acc = _mm512_setzero_ps();
  for (int64_t s = 0; s < steps; ++s, ++x) {
    w.prefetch(s);
    __m512i v[kQuads], sum[kDigits];
    load_quads(w.codes(s), w.stride, v);
#pragma GCC unroll 3
    for (int j = 0; j < kDigits; ++j) sum[j] = _mm512_set1_epi32(x->start[j]);
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; ++q) {
      const __m512i unsigned_codes = _mm512_xor_si512(v[q], _mm512_set1_epi8(-128));
#pragma GCC unroll 3
      for (int j = 0; j < kDigits; ++j) dot_bytes(sum[j], unsigned_codes, _mm512_set1_epi32(x->digits[j][q]));
    }
    acc = add_block(acc, sum[0], sum[1], sum[2], w.scales(s), _mm512_set1_ps(x->unit));
  }
  _mm512_store_ps(c, acc);
}

// c: [16 outputs, 16 tokens]. scales: [steps, 16 outputs]. ahead: whether to ask for the next strip.
void multiply(const Strip& w, const float* scales, const TokensStep* x, int64_t steps, bool ahead, float* c) {
  alignas(64) int32_t sums[kGroup][kDigits][kRows][16];
  __m512 acc[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) acc[i] = _mm512_setzero_ps();
  for (int64_t group = 0; group < steps; group += kGroup) {
    const int64_t count = std::min(kGroup, steps - group);
    for (int64_t s = 0; s < count; ++s) {
      const TokensStep& xs = x[group + s];
      if (ahead) w.prefetch(group + s);
      tile_load<4>(w.codes(group + s), w.stride);
      tile_zero<0>(), tile_zero<1>(), tile_zero<2>();
      tile_load<6>(xs.digits[0], kLineBytes);
      tile_dot_bytes<0, 4, 6>();
      tile_load<7>(xs.digits[1], kLineBytes);
      tile_dot_bytes<1, 4, 7>();
      tile_load<6>(xs.digits[2], kLineBytes);
      tile_dot_bytes<2, 4, 6>();
      tile_store<0>(sums[s][0], kLineBytes);
      tile_store<1>(sums[s][1], kLineBytes);
      tile_store<2>(sums[s][2], kLineBytes);
    }
    for (int64_t s = 0; s < count; ++s) {
      const __m512 unit = _mm512_load_ps(x[group + s].unit);
      const float* scale = scales + (group + s) * kRows;
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i)
        acc[i] = add_block(acc[i], _mm512_load_si512(sums[s][0][i]), _mm512_load_si512(sums[s][1][i]),
                           _mm512_load_si512(sums[s][2][i]), _mm512_set1_ps(scale[i]), unit);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) _mm512_store_ps(c + 16 * i, acc[i]);
}

// The strip of the outputs [n, n + rows): where it lies if it is whole, otherwise a copy that the last output fills up.
Strip strip_at(const LinearArgs& a, int64_t n, int64_t rows, uint8_t* copy) {
  const int64_t row_bytes = a.ld_weight / kQuantBlock * kBlockBytes;
  const uint8_t* w = static_cast<const uint8_t*>(a.weight) + n * row_bytes;
  if (rows >= kRows) return {w, row_bytes};
  const int64_t used = a.in / kQuantBlock * kBlockBytes;
  for (int64_t r = 0; r < kRows; ++r)
    std::memcpy(copy + r * used, w + std::min(r, rows - 1) * row_bytes, static_cast<size_t>(used));
  return {copy, used};
}

int64_t split_tiles(int64_t steps) {
  return std::max<int64_t>(1, kSplitBytes / (steps * static_cast<int64_t>(sizeof(TokensStep))));
}

void one_token(const LinearArgs& a, const Part& part, uint8_t* copy, float* scratch) {
  const int64_t steps = a.in / kDepth;
  auto* x = reinterpret_cast<TokenStep*>(scratch);
  alignas(64) float c[kRows];
  split(a.x, steps, x);
  for (int64_t n = part.begin; n < part.end; n += kRows) {
    const int64_t rows = std::min(kRows, part.end - n);
    multiply(strip_at(a, n, rows, copy), x, steps, c);
    store_outputs<1>(a, c, 0, 1, n, rows);
  }
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
      const Strip strip = strip_at(a, n, rows, copy);
      for (int64_t s = 0; s < steps; ++s) _mm512_store_ps(scales + s * kRows, strip.scales(s));
      for (int64_t t = first; t < last; t += kRows) {
        multiply(strip, scales, x + (t - first) / kRows * steps, steps, t == first, c);
        store_outputs<kRows>(a, c, t, std::min(kRows, last - t), n, rows);
      }
    }
  }
}

// Of a copied strip, in whole lines.
int64_t copy_bytes(int64_t in) { return in / kQuantBlock * ((kStripBytes + kLineBytes - 1) / kLineBytes * kLineBytes); }

}  // namespace

void LinearAmxQ8(const LinearArgs& a, const Share& share) {
  const Part part(a, share);
  if (part.empty()) return;
  auto* copy = reinterpret_cast<uint8_t*>(share.scratch);
  float* rest = share.scratch + copy_bytes(a.in) / static_cast<int64_t>(sizeof(float));
  a.tokens == 1 ? one_token(a, part, copy, rest) : many_tokens(a, part, copy, rest);
}

int64_t LinearAmxQ8Scratch(int64_t in) {
  const int64_t steps = in / kDepth, tokens = split_tiles(steps) * static_cast<int64_t>(sizeof(TokensStep));
  return (copy_bytes(in) + steps * (kRows * static_cast<int64_t>(sizeof(float)) + tokens)) /
         static_cast<int64_t>(sizeof(float));
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#endif
