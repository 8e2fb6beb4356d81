// Elementary functions on vectors of float32. Errors are relative to the true value; math_test.cc sweeps the range.
//   Exp, Exp2   2e-7; results below 2^-125.5 may become 0; inf where the result overflows
//   Softplus    3e-7 down to results of 2^-125
//   Silu        4e-7 above x = -88; below it the result, smaller than 6e-37, may become -0
// NaN gives NaN. The same lane value gives the same bits in every lane.
#include "hwy/highway.h"

#if defined(M4J_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M4J_MATH_INL_H_
#undef M4J_MATH_INL_H_
#else
#define M4J_MATH_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

// Added to a value in [-126, 128.5) it rounds it to an integer n and leaves n + 126 in the low bits: the exponent
// field of 2^(n-1). The polynomials below carry the missing factor 2, so that n = 128 still has a finite scale.
// n = -126 gives the scale 0.
inline constexpr float kRoundBias = 12582912.0f + 126.0f;  // 1.5 * 2^23 + 126

template <class D, class V>
HWY_INLINE V ScaleOf(D d, V rounded) {
  const hwy::HWY_NAMESPACE::RebindToUnsigned<D> du;
  namespace hn = hwy::HWY_NAMESPACE;
  return hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, rounded)));
}

// NaN passes, for which x86 wants the bound as the first operand; ARM's instructions would return the bound.
template <class D, class V>
HWY_INLINE V Clamp(D d, V x, float low, float high) {
  namespace hn = hwy::HWY_NAMESPACE;
  const V lo = hn::Set(d, low), hi = hn::Set(d, high);
#if HWY_ARCH_X86
  return hn::Max(lo, hn::Min(hi, x));
#else
  x = hn::IfThenElse(hn::Gt(x, hi), hi, x);
  return hn::IfThenElse(hn::Lt(x, lo), lo, x);
#endif
}

// 2^x
template <class D, class V>
HWY_INLINE V Exp2(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
#if HWY_TARGET == HWY_AVX3
  // Two instructions of AVX-512 do the range by themselves: x minus the nearest integer (0 for infinities), and p 2^n.
  const V r = V{_mm512_reduce_ps(x.raw, 0)};
  V p = hn::Set(d, 0.00015353268975933795f);  // as below, without the factor 2
  p = hn::MulAdd(p, r, hn::Set(d, 0.0013399002864012274f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.009618438562648178f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.05550332165138307f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.24022647897135138f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.6931472029825305f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  return V{_mm512_scalef_ps(p.raw, hn::Sub(x, r).raw)};
#else
  x = Clamp(d, x, -126.0f, 128.4f);
  const V t = hn::Add(x, hn::Set(d, kRoundBias));
  const V r = hn::Sub(x, hn::Sub(t, hn::Set(d, kRoundBias)));  // exact, |r| <= 1/2
  // 2 * 2^r, minimax
  V p = hn::Set(d, 2 * 0.00015353268975933795f);
  p = hn::MulAdd(p, r, hn::Set(d, 2 * 0.0013399002864012274f));
  p = hn::MulAdd(p, r, hn::Set(d, 2 * 0.009618438562648178f));
  p = hn::MulAdd(p, r, hn::Set(d, 2 * 0.05550332165138307f));
  p = hn::MulAdd(p, r, hn::Set(d, 2 * 0.24022647897135138f));
  p = hn::MulAdd(p, r, hn::Set(d, 2 * 0.6931472029825305f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.0f));
  return hn::Mul(p, ScaleOf(d, t));
#endif
}

// e^x
template <class D, class V>
HWY_INLINE V Exp(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  x = Clamp(d, x, -87.4f, 89.0f);
  const V t = hn::MulAdd(x, hn::Set(d, 1.44269504f), hn::Set(d, kRoundBias));
  const V n = hn::Sub(t, hn::Set(d, kRoundBias));
  // r = x - n ln 2, with ln 2 in two parts of which the first times n is exact.
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  // 2 e^r, minimax
  V p = hn::Set(d, 2 * 0.0013814459486060089f);
  p = hn::MulAdd(p, r, hn::Set(d, 2 * 0.008368780366338644f));
  p = hn::MulAdd(p, r, hn::Set(d, 2 * 0.0416683943725435f));
  p = hn::MulAdd(p, r, hn::Set(d, 2 * 0.16666520107192634f));
  p = hn::MulAdd(p, r, hn::Set(d, 2 * 0.499999934115841f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.0f));
  return hn::Mul(p, ScaleOf(d, t));
}

// x / (1 + e^-x)
template <class D, class V>
HWY_INLINE V Silu(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), Exp(d, hn::Neg(x))));
}

// log(1 + e^x) = max(x, 0) + log1p(y), y = e^-|x|, log1p(y) = 2 atanh(s), s = y / (2 + y) <= 1/3
template <class D, class V>
HWY_INLINE V Softplus(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const V y = Exp(d, hn::Neg(hn::Abs(x)));
  const V s = hn::Div(y, hn::Add(y, hn::Set(d, 2.0f)));
  const V z = hn::Mul(s, s);
  V q = hn::Set(d, 0.14012567374617804f);
  q = hn::MulAdd(q, z, hn::Set(d, 0.13999507329164892f));
  q = hn::MulAdd(q, z, hn::Set(d, 0.20010853024664413f));
  q = hn::MulAdd(q, z, hn::Set(d, 0.33333206512875435f));
  const V s2 = hn::Add(s, s);
  return hn::Add(hn::Max(hn::Zero(d), x), hn::MulAdd(hn::Mul(q, z), s2, s2));
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#endif  // M4J_MATH_INL_H_
