// Softmax and log-softmax over rows. Members take rows.
#include <cmath>

#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/softmax.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/math-inl.h"
#include "ops/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

float max_of(const float* x, int64_t n) {
  const VecTag d;
  Vec m = hn::Set(d, x[0]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) m = hn::Max(m, hn::LoadU(d, x + i));
  float max = hn::GetLane(hn::MaxOfLanes(d, m));
  for (; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

// sum of exp(x - max), with the terms kept in `out` if kStore. Float32 within a block, double over the blocks.
template <bool kStore>
double sum_exp(const float* x, int64_t n, float max, float* out) {
  constexpr int64_t kBlock = 16 * kLanes;
  const VecTag d;
  const Vec shift = hn::Set(d, max);
  double sum = 0;
  int64_t i = 0;
  while (i + kLanes <= n) {
    const int64_t end = i + kBlock < n ? i + kBlock : n;
    Vec s = hn::Zero(d);
    for (; i + kLanes <= end; i += kLanes) {
      const Vec e = Exp(d, hn::Sub(hn::LoadU(d, x + i), shift));
      if constexpr (kStore) hn::StoreU(e, d, out + i);
      s = hn::Add(s, e);
    }
    sum += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, s)));
  }
  if (i < n) {
    HWY_ALIGN float lanes[kLanes];
    hn::Store(Exp(d, hn::Sub(load_part(x + i, n - i), shift)), d, lanes);
    for (int64_t l = 0; l < n - i; ++l) {
      if constexpr (kStore) out[i + l] = lanes[l];
      sum += static_cast<double>(lanes[l]);
    }
  }
  return sum;
}

}  // namespace

void Softmax(const SoftmaxArgs& a, const Share& share) {
  const VecTag d;
  int64_t begin, end;
  share.range(a.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    const float* x = a.x + t * a.ld_x;
    float* out = a.out + t * a.ld_out;
    const Vec scale = hn::Set(d, static_cast<float>(1.0 / sum_exp<true>(x, a.n, max_of(x, a.n), out)));
    int64_t i = 0;
    for (; i + kLanes <= a.n; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, out + i), scale), d, out + i);
    if (i < a.n) store_part(hn::Mul(load_part(out + i, a.n - i), scale), out + i, a.n - i);
  }
}

void LogSoftmax(const SoftmaxArgs& a, const Share& share) {
  const VecTag d;
  int64_t begin, end;
  share.range(a.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    const float* x = a.x + t * a.ld_x;
    float* out = a.out + t * a.ld_out;
    const float max = max_of(x, a.n);
    const Vec shift = hn::Set(d, max);
    const Vec log_sum = hn::Set(d, static_cast<float>(std::log(sum_exp<false>(x, a.n, max, nullptr))));
    int64_t i = 0;
    for (; i + kLanes <= a.n; i += kLanes)
      hn::StoreU(hn::Sub(hn::Sub(hn::LoadU(d, x + i), shift), log_sum), d, out + i);
    if (i < a.n) store_part(hn::Sub(hn::Sub(load_part(x + i, a.n - i), shift), log_sum), out + i, a.n - i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
