// Weights in blocks (Q8_0, Q4_0) times activations in integers, for AVX-512 with dot products of bytes (VNNI) and for
// AMX.
//
// The 32 activations that meet a block become integers of 16 bits in a common unit, as if all were rounded like the
// largest of them, and these two signed digits of 8 bits. Codes times digits add up exactly, in whatever order; the
// block's sum is then rounded, scaled and added in float32, block by block. So each output has the same bits from every
// unit, for one token and for a thousand. What 16 bits lose, 3e-5 of the norm, is a two hundredth of what 8 bits a
// weight do.
#include "ops/ops.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "ops/cpu/avx512-inl.h"

#if defined(M4J_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M4J_BLOCKS_INL_H_
#undef M4J_BLOCKS_INL_H_
#else
#define M4J_BLOCKS_INL_H_
#endif

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

// A step is one block. An element of a vector of codes or digits holds four of them, a quad.
constexpr int64_t kDigits = 2, kQuads = kQuantBlock / 4, kScaleBytes = 2;
static_assert(kDepth == kQuantBlock);

HWY_INLINE __m512i magnitude(__m512 v) { return _mm512_and_si512(bits(v), _mm512_set1_epi32(0x7FFFFFFF)); }

// For numbers up to `largest`, the bits of one: the factor, a power of two, that makes them integers within two digits,
// and its inverse; NaN if not all are finite. Two digits reach 127 (1 + 2^8), a little less than 2^15: hence the carry.
// Below 2^-112 the unit stays, for its inverse to be normal.
HWY_INLINE __m512 to_integers(__m512i largest, __m512* unit) {
  const __m512i exponent = _mm512_max_epi32(
      _mm512_srli_epi32(_mm512_add_epi32(largest, _mm512_set1_epi32(0x20000)), 23), _mm512_set1_epi32(15));
  const __mmask16 finite = _mm512_cmplt_epi32_mask(largest, _mm512_set1_epi32(0x7F800000));
  *unit = _mm512_castsi512_ps(_mm512_mask_slli_epi32(_mm512_set1_epi32(0x7FC00000), finite,
                                                     _mm512_sub_epi32(exponent, _mm512_set1_epi32(14)), 23));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(2 * 127 + 14), exponent), 23));
}

// Byte j of each element: signed digit j, for j < kDigits.
HWY_INLINE __m512i digits_of(__m512 x, __m512 factor) {
  const __m512i middle = _mm512_set1_epi32(0x8080);
  return _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, factor)), middle), middle);
}

// acc + the products of a block, of which d are the sums with each digit. Scales come before units, for products that
// stay normal.
HWY_INLINE __m512 add_block(__m512 acc, __m512i d0, __m512i d1, __m512 scale, __m512 unit) {
  const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(d1, 8), d0));
  return _mm512_fmadd_ps(_mm512_mul_ps(sum, scale), unit, acc);
}

// 16 rows of bytes at one stride, for loops that walk all of them. Four pointers and two distances stay in registers,
// which the compiler would use up on sixteen of one or the other: hence the empty statements, through which it does not
// see.
class Rows16 {
 public:
  HWY_INLINE Rows16(const uint8_t* p, int64_t stride) : stride_(stride), stride3_(3 * stride) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      p_[i] = p + 4 * i * stride;
      asm("" : "+r"(p_[i]));
    }
    asm("" : "+r"(stride3_));
  }

  HWY_INLINE const uint8_t* operator[](int r) const {
    const uint8_t* p = p_[r / 4];
    return r % 4 == 3 ? p + stride3_ : p + r % 4 * stride_;
  }

 private:
  const uint8_t* p_[4];
  int64_t stride_, stride3_;
};

// The bytes of a block, and its codes without sign: kZero is the one of a weight of 0.
struct Q8Block {
  static constexpr int64_t kBytes = 34;
  static constexpr int32_t kZero = 128;

  // The codes of 16 outputs: v[q] is quad q of them.
  static HWY_INLINE void load_quads(const Rows16& rows, __m512i (&v)[kQuads]) {
    const auto row = [&](int r) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[r] + kScaleBytes)); };
    __m512i u[kQuads];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // outputs 0-3 beside 4-7, then 8-11 beside 12-15
      const int r = i < 4 ? i : i + 4;
      u[i] = _mm512_inserti64x4(_mm512_castsi256_si512(row(r)), row(r + 4), 1);
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
    const __m512i sign = _mm512_set1_epi8(-128);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      v[j] = _mm512_xor_si512(_mm512_shuffle_i64x2(u[j], u[j + 4], 0x88), sign);
      v[j + 4] = _mm512_xor_si512(_mm512_shuffle_i64x2(u[j], u[j + 4], 0xDD), sign);
    }
  }
};

struct Q4Block {
  static constexpr int64_t kBytes = 18;
  static constexpr int32_t kZero = 8;

  static HWY_INLINE void load_quads(const Rows16& rows, __m512i (&v)[kQuads]) {
    const auto row = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + kScaleBytes)); };
    __m512i u[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {  // outputs j, j + 4, j + 8, j + 12
      u[j] = _mm512_inserti32x4(_mm512_castsi128_si512(row(j)), row(j + 4), 1);
      u[j] = _mm512_inserti32x4(_mm512_inserti32x4(u[j], row(j + 8), 2), row(j + 12), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(u[0], u[1]), b = _mm512_unpackhi_epi32(u[0], u[1]);
    const __m512i c = _mm512_unpacklo_epi32(u[2], u[3]), d = _mm512_unpackhi_epi32(u[2], u[3]);
    const __m512i quads[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                              _mm512_unpackhi_epi64(b, d)};
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      v[j] = _mm512_and_si512(quads[j], low);
      v[j + 4] = _mm512_and_si512(_mm512_srli_epi16(quads[j], 4), low);
    }
  }
};

// The scales of 16 blocks.
HWY_INLINE __m512 load_scales(const Rows16& rows) {
  const auto pair = [&](int r) {  // the first codes come along
    int32_t a, b;
    std::memcpy(&a, rows[r], sizeof a);
    std::memcpy(&b, rows[r + 1], sizeof b);
    return _mm_unpacklo_epi16(_mm_cvtsi32_si128(a), _mm_cvtsi32_si128(b));
  };
  const auto eight = [&](int r) {
    return _mm_unpacklo_epi64(_mm_unpacklo_epi32(pair(r), pair(r + 2)), _mm_unpacklo_epi32(pair(r + 4), pair(r + 6)));
  };
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(eight(0)), eight(8), 1));
}

// The blocks of 16 outputs, `stride` bytes from one to the next; the outputs after these begin where they end.
template <class Block>
struct Strip {
  const uint8_t* blocks;
  int64_t stride;

  HWY_INLINE const uint8_t* at(int64_t step) const { return blocks + step * Block::kBytes; }
  HWY_INLINE Strip next(int64_t strips) const { return {blocks + strips * kRows * stride, stride}; }
  HWY_INLINE Rows16 rows(int64_t step) const { return {at(step), stride}; }

  // Asks for the step-th part of the strip that begins `strips` further on, in the order of addresses, for the fewest
  // requests; 4 KB ahead of that, for the lines of its last rows to come in time.
  HWY_INLINE void prefetch(int64_t step, int64_t strips) const {
    constexpr int64_t kStepBytes = kRows * Block::kBytes, kAhead = 4096;
    const uint8_t* p = next(strips).blocks + step * kStepBytes + kAhead;
#pragma GCC unroll 9
    for (int64_t i = 0; i < kStepBytes; i += kLineBytes) __builtin_prefetch(p + i, 0, 3);
  }
};

// The strip of the outputs [n, n + rows): where it lies if it is whole, otherwise a copy that the last output fills up.
template <class Block>
Strip<Block> strip_at(const LinearArgs& a, int64_t n, int64_t rows, uint8_t* copy) {
  const int64_t row_bytes = a.ld_weight / kQuantBlock * Block::kBytes;
  const uint8_t* w = static_cast<const uint8_t*>(a.weight) + n * row_bytes;
  if (rows >= kRows) return {w, row_bytes};
  const int64_t used = a.in / kQuantBlock * Block::kBytes;
  for (int64_t r = 0; r < kRows; ++r)
    std::memcpy(copy + r * used, w + std::min(r, rows - 1) * row_bytes, static_cast<size_t>(used));
  return {copy, used};
}

// Of a copied strip, in whole lines.
template <class Block>
int64_t copy_bytes(int64_t in) {
  constexpr int64_t kStepBytes = kRows * Block::kBytes;
  return in / kQuantBlock * ((kStepBytes + kLineBytes - 1) / kLineBytes * kLineBytes);
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3

#endif  // M4J_BLOCKS_INL_H_
#endif  // __x86_64__
