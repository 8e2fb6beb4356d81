// RMSNorm over parts of each row, with an optional residual addition before it and a SiLU gate. Members take tokens.
#include <cmath>

#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rms_norm.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/math-inl.h"
#include "ops/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

struct Part {
  float* x;  // [n]
  const float* residual;
  const float* gate;
  float* out;  // [n]; gets x * silu(gate) if there is a gate
};

// The values at i: adds the residual, applies the gate, returns what is to be normed.
template <bool kResidual, bool kGate, class Span>
HWY_INLINE Vec prepare(const Part& p, int64_t i, Span span) {
  Vec v = span.load(p.x + i);
  if constexpr (kResidual) {
    v = hn::Add(v, span.load(p.residual + i));
    span.store(v, p.x + i);
  }
  if constexpr (kGate) {
    v = hn::Mul(v, Silu(VecTag(), span.load(p.gate + i)));
    span.store(v, p.out + i);
  }
  return v;
}

// The sum of squares, in four vectors whose lanes take the values in turn.
template <bool kResidual, bool kGate>
double sum_of_squares(const Part& p, int64_t n) {
  const VecTag d;
  Vec s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    const Vec v0 = prepare<kResidual, kGate>(p, i, Whole());
    const Vec v1 = prepare<kResidual, kGate>(p, i + kLanes, Whole());
    const Vec v2 = prepare<kResidual, kGate>(p, i + 2 * kLanes, Whole());
    const Vec v3 = prepare<kResidual, kGate>(p, i + 3 * kLanes, Whole());
    s0 = hn::MulAdd(v0, v0, s0);
    s1 = hn::MulAdd(v1, v1, s1);
    s2 = hn::MulAdd(v2, v2, s2);
    s3 = hn::MulAdd(v3, v3, s3);
  }
  for (; i + kLanes <= n; i += kLanes) {
    const Vec v = prepare<kResidual, kGate>(p, i, Whole());
    s0 = hn::MulAdd(v, v, s0);
  }
  if (i < n) {
    const Vec v = prepare<kResidual, kGate>(p, i, Rest{n - i});
    s1 = hn::MulAdd(v, v, s1);
  }
  float sums[4];
  sum_lanes4(s0, s1, s2, s3, sums);
  return (static_cast<double>(sums[0]) + sums[1]) + (static_cast<double>(sums[2]) + sums[3]);
}

double sum_of_squares(const Part& p, int64_t n) {
  if (p.gate == nullptr)
    return p.residual == nullptr ? sum_of_squares<false, false>(p, n) : sum_of_squares<true, false>(p, n);
  return p.residual == nullptr ? sum_of_squares<false, true>(p, n) : sum_of_squares<true, true>(p, n);
}

template <class Span>
HWY_INLINE void scale_step(const float* x, Vec scale, const float* weight, float* out, Span span) {
  Vec v = hn::Mul(span.load(x), scale);
  if (weight != nullptr) v = hn::Mul(v, span.load(weight));
  span.store(v, out);
}

void scale_part(const float* x, float scale, const float* weight, int64_t n, float* out) {
  const Vec s = hn::Set(VecTag(), scale);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) scale_step(x + i, s, weight == nullptr ? nullptr : weight + i, out + i, Whole());
  if (i < n) scale_step(x + i, s, weight == nullptr ? nullptr : weight + i, out + i, Rest{n - i});
}

}  // namespace

void RmsNorm(const RmsNormArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.tokens, 1, &begin, &end);
  const int64_t n = a.dim / a.n_groups;
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t i = 0; i < a.dim; i += n) {
      const Part p{a.x + t * a.ld_x + i, a.residual == nullptr ? nullptr : a.residual + t * a.ld_residual + i,
                   a.gate == nullptr ? nullptr : a.gate + t * a.ld_gate + i, a.out + t * a.ld_out + i};
      const double mean = sum_of_squares(p, n) / static_cast<double>(n);
      const float scale = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(a.eps)));
      scale_part(p.gate == nullptr ? p.x : p.out, scale, a.weight == nullptr ? nullptr : a.weight + i, n, p.out);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
