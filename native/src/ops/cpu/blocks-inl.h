// Weights in blocks (Q8_0, Q4_0) times activations in integers, for processors with dot products of bytes (VNNI of
// AVX-512 or AVX2, ARM's dotprod) and for AMX.
//
// The 32 activations that meet a block become integers of 16 bits in a common unit, as if all were rounded like the
// largest of them, and these two signed digits of 8 bits. Codes times digits add up exactly, in whatever order; the
// block's sum is then rounded, scaled and added in float32, block by block. So each output has the same bits from every
// unit, for one token and for a thousand. What 16 bits lose, 3e-5 of the norm, is a two hundredth of what 8 bits a
// weight do.
#include "ops/ops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "ops/cpu/products-inl.h"
#include "ops/cpu/vec-inl.h"

#if defined(M4J_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M4J_BLOCKS_INL_H_
#undef M4J_BLOCKS_INL_H_
#else
#define M4J_BLOCKS_INL_H_
#endif

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || (HWY_ARCH_ARM_A64 && HWY_TARGET != HWY_SVE_256)
HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// A step is one block. An element of a vector of codes or digits holds four of them, a quad.
constexpr int64_t kDigits = 2, kQuads = kQuantBlock / 4, kScaleBytes = 2;
static_assert(kDepth == kQuantBlock);

using IntTag = hwy::HWY_NAMESPACE::RebindToSigned<VecTag>;
using Ints = hwy::HWY_NAMESPACE::Vec<IntTag>;

HWY_INLINE Ints magnitude(Vec v) { return hn::BitCast(IntTag(), hn::Abs(v)); }

// To the nearest, ties to even.
HWY_INLINE Ints to_ints(Vec v) {
#if HWY_TARGET == HWY_AVX3
  return Ints{_mm512_cvtps_epi32(v.raw)};
#elif HWY_TARGET == HWY_AVX2
  return Ints{_mm256_cvtps_epi32(v.raw)};
#else
  return Ints{vcvtnq_s32_f32(v.raw)};
#endif
}

// For numbers up to `largest`, the bits of one: the factor, a power of two, that makes them integers within two digits,
// and its inverse; NaN if not all are finite. Two digits reach 127 (1 + 2^8), a little less than 2^15: hence the carry.
// Below 2^-112 the unit stays, for its inverse to be normal.
HWY_INLINE Vec to_integers(Ints largest, Vec* unit) {
  const IntTag d;
  const Ints exponent =
      hn::Max(hn::ShiftRight<23>(hn::Add(largest, hn::Set(d, 0x20000))), hn::Set(d, 15));
  const auto finite = hn::Lt(largest, hn::Set(d, 0x7F800000));
  *unit = hn::BitCast(VecTag(), hn::IfThenElse(finite, hn::ShiftLeft<23>(hn::Sub(exponent, hn::Set(d, 14))),
                                               hn::Set(d, 0x7FC00000)));
  return hn::BitCast(VecTag(), hn::ShiftLeft<23>(hn::Sub(hn::Set(d, 2 * 127 + 14), exponent)));
}

// Byte j of each element: signed digit j, for j < kDigits.
HWY_INLINE Ints digits_of(Vec x, Vec factor) {
  const Ints middle = hn::Set(IntTag(), 0x8080);
  return hn::Xor(hn::Add(to_ints(hn::Mul(x, factor)), middle), middle);
}

// acc + the products of a block, of which d are the sums with each digit. Scales come before units, for products that
// stay normal.
HWY_INLINE Vec add_block(Vec acc, Ints d0, Ints d1, Vec scale, Vec unit) {
  const Vec sum = hn::ConvertTo(VecTag(), hn::Add(hn::ShiftLeft<8>(d1), d0));
  return hn::MulAdd(hn::Mul(sum, scale), unit, acc);
}

// kRows rows of bytes at one stride, for loops that walk all of them. A pointer for four of them and two distances stay
// in registers, which the compiler would use up on sixteen of one or the other: hence the empty statements, through
// which it does not see.
class RowsOfBytes {
 public:
  HWY_INLINE RowsOfBytes(const uint8_t* p, int64_t stride) : stride_(stride), stride3_(3 * stride) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows / 4; ++i) {
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
  const uint8_t* p_[kRows / 4];
  int64_t stride_, stride3_;
};

// Block b of 128 bits: 16 bytes at `offset` in row first + 4 b.
HWY_INLINE Ints load_column(const RowsOfBytes& rows, int first, int64_t offset) {
#if HWY_ARCH_ARM_A64
  return Ints{vreinterpretq_s32_u8(vld1q_u8(rows[first] + offset))};
#else
  const auto row = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + offset)); };
#if HWY_TARGET == HWY_AVX3
  const __m512i v = _mm512_inserti32x4(_mm512_castsi128_si512(row(first)), row(first + 4), 1);
  return Ints{_mm512_inserti32x4(_mm512_inserti32x4(v, row(first + 8), 2), row(first + 12), 3)};
#else
  return Ints{_mm256_inserti128_si256(_mm256_castsi128_si256(row(first)), row(first + 4), 1)};
#endif
#endif
}

// 4 x 4 elements within each block of 128 bits.
HWY_INLINE void transpose4(Ints (&v)[4]) {
  const IntTag d;
  const hn::RepartitionToWide<IntTag> dw;
  const auto a = hn::BitCast(dw, hn::InterleaveLower(d, v[0], v[1]));
  const auto b = hn::BitCast(dw, hn::InterleaveUpper(d, v[0], v[1]));
  const auto c = hn::BitCast(dw, hn::InterleaveLower(d, v[2], v[3]));
  const auto e = hn::BitCast(dw, hn::InterleaveUpper(d, v[2], v[3]));
  v[0] = hn::BitCast(d, hn::InterleaveLower(dw, a, c));
  v[1] = hn::BitCast(d, hn::InterleaveUpper(dw, a, c));
  v[2] = hn::BitCast(d, hn::InterleaveLower(dw, b, e));
  v[3] = hn::BitCast(d, hn::InterleaveUpper(dw, b, e));
}

// The bytes of a block, and its codes: without sign on x86, whose products want them so. kZero is the one of a weight
// of 0.
struct Q8Block {
  static constexpr int64_t kBytes = 34;
  static constexpr int32_t kZero = HWY_ARCH_X86 ? 128 : 0;

  // The codes of kRows outputs: v[q] is quad q of them.
  static HWY_INLINE void load_quads(const RowsOfBytes& rows, Ints (&v)[kQuads]) {
    const Ints sign = hn::Set(IntTag(), static_cast<int32_t>(kZero * 0x01010101u));
#if HWY_TARGET == HWY_AVX3  // half as many loads
    const auto row = [&](int r) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[r] + kScaleBytes)); };
    Ints u[2][4];  // u[i][j]: quads j and j + 4
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {  // outputs 0-3 beside 4-7, then 8-11 beside 12-15
        const int r = 8 * i + j;
        u[i][j] = Ints{_mm512_inserti64x4(_mm512_castsi256_si512(row(r)), row(r + 4), 1)};
      }
      transpose4(u[i]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      v[j] = hn::Xor(Ints{_mm512_shuffle_i64x2(u[0][j].raw, u[1][j].raw, 0x88)}, sign);
      v[j + 4] = hn::Xor(Ints{_mm512_shuffle_i64x2(u[0][j].raw, u[1][j].raw, 0xDD)}, sign);
    }
#else
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      Ints u[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) u[j] = load_column(rows, j, kScaleBytes + 4 * i);
      transpose4(u);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) v[i + j] = hn::Xor(u[j], sign);
    }
#endif
  }
};

struct Q4Block {
  static constexpr int64_t kBytes = 18;
  static constexpr int32_t kZero = 8;

  static HWY_INLINE void load_quads(const RowsOfBytes& rows, Ints (&v)[kQuads]) {
    const Ints low = hn::Set(IntTag(), 0x0F0F0F0F);
    Ints u[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) u[j] = load_column(rows, j, kScaleBytes);
    transpose4(u);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      v[j] = hn::And(u[j], low);
      v[j + 4] = hn::And(hn::ShiftRight<4>(u[j]), low);
    }
  }
};

// The scales of kRows blocks.
HWY_INLINE Vec load_scales(const RowsOfBytes& rows) {
#if HWY_ARCH_ARM_A64
  uint16x4_t halves{};
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) std::memcpy(reinterpret_cast<uint16_t*>(&halves) + r, rows[r], sizeof(uint16_t));
  return Vec{vcvt_f32_f16(vreinterpret_f16_u16(halves))};
#else
  const auto pair = [&](int r) {  // the first codes come along
    int32_t a, b;
    std::memcpy(&a, rows[r], sizeof a);
    std::memcpy(&b, rows[r + 1], sizeof b);
    return _mm_unpacklo_epi16(_mm_cvtsi32_si128(a), _mm_cvtsi32_si128(b));
  };
  const auto eight = [&](int r) {
    return _mm_unpacklo_epi64(_mm_unpacklo_epi32(pair(r), pair(r + 2)), _mm_unpacklo_epi32(pair(r + 4), pair(r + 6)));
  };
#if HWY_TARGET == HWY_AVX3
  return Vec{_mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(eight(0)), eight(8), 1))};
#else
  return Vec{_mm256_cvtph_ps(eight(0))};
#endif
#endif
}

// The blocks of kRows outputs, `stride` bytes from one to the next; the outputs after these begin where they end.
template <class Block>
struct Strip {
  const uint8_t* blocks;
  int64_t stride;

  HWY_INLINE const uint8_t* at(int64_t step) const { return blocks + step * Block::kBytes; }
  HWY_INLINE Strip next(int64_t strips) const { return {blocks + strips * kRows * stride, stride}; }
  HWY_INLINE RowsOfBytes rows(int64_t step) const { return {at(step), stride}; }

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
#endif  // HWY_TARGET

#endif  // M4J_BLOCKS_INL_H_
