// Vectors of float32 shared by the ops: partial loads and stores that touch no byte outside, conversions, sums.
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "ops/ops.h"

#if defined(M4J_VEC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M4J_VEC_INL_H_
#undef M4J_VEC_INL_H_
#else
#define M4J_VEC_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

using VecTag = hwy::HWY_NAMESPACE::ScalableTag<float>;
using Vec = hwy::HWY_NAMESPACE::Vec<VecTag>;
// A Vec that can stand in an array: SVE's own types have no size. The build gives the compiler the width.
#if HWY_TARGET == HWY_SVE_256
typedef Vec ArrayVec __attribute__((arm_sve_vector_bits(256)));
#else
using ArrayVec = Vec;
#endif
inline constexpr int64_t kLanes = HWY_LANES(float);

HWY_INLINE int64_t round_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// The n < kLanes floats at p, then zeros. Masks of AVX2, AVX-512 and SVE touch nothing beyond; elsewhere the vector
// goes through memory, where wide loads wait for narrow stores.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_TARGET == HWY_SVE_256
HWY_INLINE Vec load_part(const float* p, int64_t n) {
  namespace hn = hwy::HWY_NAMESPACE;
  return hn::MaskedLoad(hn::FirstN(VecTag(), static_cast<size_t>(n)), VecTag(), p);
}

HWY_INLINE void store_part(Vec v, float* p, int64_t n) {
  namespace hn = hwy::HWY_NAMESPACE;
  hn::BlendedStore(v, hn::FirstN(VecTag(), static_cast<size_t>(n)), VecTag(), p);
}
#else
HWY_INLINE Vec load_part(const float* p, int64_t n) {
  HWY_ALIGN float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return hwy::HWY_NAMESPACE::Load(VecTag(), lanes);
}

HWY_INLINE void store_part(Vec v, float* p, int64_t n) {
  HWY_ALIGN float lanes[kLanes];
  hwy::HWY_NAMESPACE::Store(v, VecTag(), lanes);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}
#endif

// What a step over an array works on: a whole vector, or the last n < kLanes elements. The same step serves both, so
// an element is computed in the same way wherever it lies.
struct Whole {
  HWY_INLINE Vec load(const float* p) const { return hwy::HWY_NAMESPACE::LoadU(VecTag(), p); }
  HWY_INLINE void store(Vec v, float* p) const { hwy::HWY_NAMESPACE::StoreU(v, VecTag(), p); }
};

struct Rest {
  int64_t n;
  HWY_INLINE Vec load(const float* p) const { return load_part(p, n); }
  HWY_INLINE void store(Vec v, float* p) const { store_part(v, p, n); }
};

// Four vectors to the sums of their lanes. Within 128-bit blocks (l0 + l2) + (l1 + l3), the blocks by halves first.
template <class DT, class VT>
HWY_INLINE void fold_blocks(DT d, VT v, float* HWY_RESTRICT sums) {
  namespace hn = hwy::HWY_NAMESPACE;
  if constexpr (hn::MaxLanes(DT()) <= 4) {
    hn::StoreU(v, d, sums);
  } else {
    const hn::Half<DT> dh;
    fold_blocks(dh, hn::Add(hn::LowerHalf(dh, v), hn::UpperHalf(dh, v)), sums);
  }
}

HWY_INLINE void sum_lanes4(Vec a, Vec b, Vec c, Vec e, float* HWY_RESTRICT sums) {
  namespace hn = hwy::HWY_NAMESPACE;
  const VecTag d;
  const hn::RepartitionToWide<VecTag> dw;
  const auto ab = hn::BitCast(dw, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  const auto ce = hn::BitCast(dw, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
  fold_blocks(
      d, hn::Add(hn::BitCast(d, hn::InterleaveLower(dw, ab, ce)), hn::BitCast(d, hn::InterleaveUpper(dw, ab, ce))),
      sums);
}

// kLanes integers of 8 or 16 bits as ones of 32 with the signedness of D.
template <class D, typename T>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> load_wide(D d, const T* p) {
  namespace hn = hwy::HWY_NAMESPACE;
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<T, D>(), p));
}

#if HWY_TARGET == HWY_SVE_256  // whose loads widen
HWY_INLINE svuint32_t load_wide(hwy::HWY_NAMESPACE::RebindToUnsigned<VecTag>, const uint16_t* p) {
  return svld1uh_u32(svptrue_b32(), p);
}
HWY_INLINE svint32_t load_wide(hwy::HWY_NAMESPACE::RebindToSigned<VecTag>, const int8_t* p) {
  return svld1sb_s32(svptrue_b32(), p);
}
HWY_INLINE svint32_t load_wide(hwy::HWY_NAMESPACE::RebindToSigned<VecTag>, const uint8_t* p) {
  return svld1ub_s32(svptrue_b32(), p);
}
#endif

// kLanes values of a 16-bit type to float32, exactly.
HWY_INLINE Vec widen_bf16(const uint16_t* p) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToUnsigned<VecTag> d32;
  return hn::BitCast(VecTag(), hn::ShiftLeft<16>(load_wide(d32, p)));
}

HWY_INLINE Vec widen_f16(const uint16_t* p) {
#if HWY_TARGET == HWY_SVE_256
  return svcvt_f32_f16_x(svptrue_b32(), svreinterpret_f16_u32(svld1uh_u32(svptrue_b32(), p)));
#else
  namespace hn = hwy::HWY_NAMESPACE;
  const VecTag d;
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_SSE4  // no instruction; Highway's own code there has neither infinity nor NaN
  const hn::RebindToUnsigned<VecTag> d32;
  const auto h = load_wide(d32, p);
  const auto exponent = hn::And(h, hn::Set(d32, 0x7C00u));
  const auto magnitude = hn::ShiftLeft<13>(hn::And(h, hn::Set(d32, 0x7FFFu)));
  // The exponent fields differ by 112, for infinity and NaN by twice as much.
  const auto special = hn::VecFromMask(d32, hn::Eq(exponent, hn::Set(d32, 0x7C00u)));
  const auto rebias = hn::Add(hn::Set(d32, 112u << 23), hn::And(special, hn::Set(d32, 112u << 23)));
  const auto normal = hn::BitCast(d, hn::Add(magnitude, rebias));
  // A subnormal number as the fraction of 2^-14, which is then taken away: no subnormal float32 comes up.
  const auto subnormal = hn::Sub(hn::BitCast(d, hn::Add(magnitude, hn::Set(d32, 113u << 23))), hn::Set(d, 0x1p-14f));
  const auto is_subnormal = hn::MaskFromVec(hn::BitCast(d, hn::VecFromMask(d32, hn::Eq(exponent, hn::Zero(d32)))));
  const auto bits = hn::BitCast(d32, hn::IfThenElse(is_subnormal, subnormal, normal));
  return hn::BitCast(d, hn::Or(bits, hn::ShiftLeft<16>(hn::And(h, hn::Set(d32, 0x8000u)))));
#else
  const hn::Rebind<uint16_t, VecTag> d16;
  const hn::Rebind<hwy::float16_t, VecTag> df16;
  return hn::PromoteTo(d, hn::BitCast(df16, hn::LoadU(d16, p)));
#endif
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#endif  // M4J_VEC_INL_H_
