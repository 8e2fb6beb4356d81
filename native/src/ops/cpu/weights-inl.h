// Weights of each type as vectors of float32. A row is addressed by the byte offset of weight k, a multiple of
// kVectors * kLanes, and a load widens so many of them. All of these conversions are exact, so a product has the same
// bits however its weight was loaded.
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "ops/cpu/vec-inl.h"
#include "ops/half.h"

#if defined(M4J_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M4J_WEIGHTS_INL_H_
#undef M4J_WEIGHTS_INL_H_
#else
#define M4J_WEIGHTS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The n < kLanes weights of 16 bits at p, then zeros.
struct PartOf16Bits {
  HWY_INLINE PartOf16Bits(const uint8_t* p, int64_t n) { std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(uint16_t)); }
  HWY_ALIGN uint16_t lanes[kLanes] = {};
};

struct F32Weight {
  static constexpr int kVectors = 1;
  static constexpr int64_t offset(int64_t k) { return k * 4; }
  static HWY_INLINE void load(const uint8_t* p, ArrayVec (&v)[1]) {
    v[0] = hn::LoadU(VecTag(), reinterpret_cast<const float*>(p));
  }
  // The n < kLanes weights at p, then zeros.
  static HWY_INLINE Vec load_part(const uint8_t* p, int64_t n) {
    return HWY_NAMESPACE::load_part(reinterpret_cast<const float*>(p), n);
  }
  static float widen(const uint8_t* p) { return *reinterpret_cast<const float*>(p); }
};

struct Bf16Weight {
  static constexpr int kVectors = 1;
  static constexpr int64_t offset(int64_t k) { return k * 2; }
  static HWY_INLINE void load(const uint8_t* p, ArrayVec (&v)[1]) {
    v[0] = widen_bf16(reinterpret_cast<const uint16_t*>(p));
  }
  static HWY_INLINE Vec load_part(const uint8_t* p, int64_t n) { return widen_bf16(PartOf16Bits(p, n).lanes); }
  static float widen(const uint8_t* p) { return bf16_to_f32(*reinterpret_cast<const uint16_t*>(p)); }
};

struct F16Weight {
  static constexpr int kVectors = 1;
  static constexpr int64_t offset(int64_t k) { return k * 2; }
  static HWY_INLINE void load(const uint8_t* p, ArrayVec (&v)[1]) {
    v[0] = widen_f16(reinterpret_cast<const uint16_t*>(p));
  }
  static HWY_INLINE Vec load_part(const uint8_t* p, int64_t n) { return widen_f16(PartOf16Bits(p, n).lanes); }
  static float widen(const uint8_t* p) { return f16_to_f32(*reinterpret_cast<const uint16_t*>(p)); }
};

// d of a block, which lies at any address. The processor's own conversion keeps subnormal numbers in every mode.
HWY_INLINE float block_scale(const uint8_t* p) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));  // 8 bytes of 18 or more
#elif HWY_ARCH_ARM_A64
  __fp16 d;
  std::memcpy(&d, p, sizeof d);
  return d;
#else
  return m4j::block_scale(p);
#endif
}

struct Q8Weight {
  static constexpr int kVectors = static_cast<int>(kQuantBlock / kLanes);
  static constexpr int64_t offset(int64_t k) { return k / kQuantBlock * 34; }
  static HWY_INLINE void load(const uint8_t* p, ArrayVec (&v)[kVectors]) {
    const hn::RebindToSigned<VecTag> d32;
    const Vec scale = hn::Set(VecTag(), block_scale(p));
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      const auto q = load_wide(d32, reinterpret_cast<const int8_t*>(p) + 2 + i * kLanes);
      v[i] = hn::Mul(scale, hn::ConvertTo(VecTag(), q));
    }
  }
};

struct Q4Weight {
  static constexpr int kVectors = static_cast<int>(kQuantBlock / kLanes);
  static constexpr int64_t offset(int64_t k) { return k / kQuantBlock * 18; }
  static HWY_INLINE void load(const uint8_t* p, ArrayVec (&v)[kVectors]) {
    constexpr int kHalf = kVectors / 2;  // vectors of low, then of high bits
    const hn::RebindToSigned<VecTag> d32;
    const Vec d = hn::Set(VecTag(), block_scale(p));
#if HWY_TARGET <= HWY_AVX3
    // Sixteen lanes: the weights of all sixteen codes fit one vector, and a permutation looks them up by the low four
    // bits of each lane.
    const Vec weights = hn::Mul(d, hn::Sub(hn::Iota(VecTag(), 0.0f), hn::Set(VecTag(), 8.0f)));
    const auto codes = load_wide(d32, p + 2);
    v[0] = Vec{_mm512_permutexvar_ps(codes.raw, weights.raw)};
    v[kHalf] = Vec{_mm512_permutexvar_ps(hn::ShiftRight<4>(codes).raw, weights.raw)};
#else
    const Vec minus_8d = hn::Mul(d, hn::Set(VecTag(), -8.0f));
    const auto low = hn::Set(d32, 15);
#pragma GCC unroll 4
    for (int i = 0; i < kHalf; ++i) {
      const auto codes = load_wide(d32, p + 2 + i * kLanes);
      v[i] = hn::MulAdd(d, hn::ConvertTo(VecTag(), hn::And(codes, low)), minus_8d);
      v[kHalf + i] = hn::MulAdd(d, hn::ConvertTo(VecTag(), hn::ShiftRight<4>(codes)), minus_8d);
    }
#endif
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#endif  // M4J_WEIGHTS_INL_H_
