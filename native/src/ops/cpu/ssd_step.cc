// SSD token by token, for decoding. Members take heads. Lanes are states: each row of a head's state [P, N] is read,
// decayed, added to, written and folded with C in one pass.
#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ssd_step.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/math-inl.h"
#include "ops/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// One head at one token.
struct Head {
  const float* x;  // [P]
  const float* B;  // [N]
  const float* C;  // [N]
  float dt, decay, skip;
  float* state;  // [P, N]
  float* out;    // [P]
};

template <int kRows, class Span>
HWY_INLINE void states(const Head& head, const ArrayVec (&dx)[kRows], Vec decay, int64_t p, int64_t d_state, int64_t n,
                       ArrayVec (&y)[4], Span span) {
  const Vec b = span.load(head.B + n);
  const Vec c = span.load(head.C + n);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    float* state = head.state + (p + r) * d_state + n;
    const Vec h = hn::MulAdd(decay, span.load(state), hn::Mul(dx[r], b));
    span.store(h, state);
    y[r] = hn::MulAdd(h, c, y[r]);
  }
}

// Rows [p, p + kRows) of the state. Each output adds its products by lanes, the lanes by a fixed tree.
template <int kRows>
HWY_INLINE void rows(const Head& head, int64_t p, int64_t d_state) {
  const VecTag d;
  ArrayVec y[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  ArrayVec dx[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) dx[r] = hn::Set(d, head.dt * head.x[p + r]);
  const Vec decay = hn::Set(d, head.decay);
  int64_t n = 0;
  for (; n + kLanes <= d_state; n += kLanes) states<kRows>(head, dx, decay, p, d_state, n, y, Whole());
  if (n < d_state) states<kRows>(head, dx, decay, p, d_state, n, y, Rest{d_state - n});
  float sums[4];
  sum_lanes4(y[0], y[1], y[2], y[3], sums);
  for (int r = 0; r < kRows; ++r) head.out[p + r] = sums[r] + head.skip * head.x[p + r];
}

void step(const Head& head, int64_t headdim, int64_t d_state) {
  int64_t p = 0;
  for (; p + 4 <= headdim; p += 4) rows<4>(head, p, d_state);
  for (; p < headdim; ++p) rows<1>(head, p, d_state);
}

// dt and exp(dt A) of the heads at h.
template <class Span>
void step_sizes(const SsdArgs& a, int64_t t, int64_t h, float* HWY_RESTRICT dt, float* HWY_RESTRICT decay, Span span) {
  const VecTag d;
  Vec v = span.load(a.dt + t * a.ld_dt + h);
  if (a.dt_bias != nullptr) v = hn::Add(v, span.load(a.dt_bias + h));
  if (a.dt_softplus) v = Softplus(d, v);
  v = Clamp(d, v, a.dt_min, a.dt_max);
  hn::Store(v, d, dt);
  hn::Store(Exp(d, hn::Mul(v, span.load(a.A + h))), d, decay);
}

}  // namespace

void SsdStep(const SsdArgs& a, const Share& share) {
  HWY_ALIGN float dt[kLanes];
  HWY_ALIGN float decay[kLanes];
  const int64_t heads_per_group = a.heads / a.n_groups;
  int64_t begin, end;
  share.range(a.heads, 1, &begin, &end);
  for (int64_t block = begin; block < end; block += kLanes) {
    const int64_t stop = block + kLanes < end ? block + kLanes : end;
    for (int64_t t = 0; t < a.tokens; ++t) {
      if (stop - block == kLanes) {
        step_sizes(a, t, block, dt, decay, Whole());
      } else {
        step_sizes(a, t, block, dt, decay, Rest{stop - block});
      }
      for (int64_t h = block; h < stop; ++h) {
        const int64_t bc = t * a.ld_bc + h / heads_per_group * a.d_state;
        const Head head{a.x + t * a.ld_x + h * a.headdim,
                        a.B + bc,
                        a.C + bc,
                        dt[h - block],
                        decay[h - block],
                        a.D == nullptr ? 0.0f : a.D[h],
                        a.state + h * a.headdim * a.d_state,
                        a.out + t * a.ld_out + h * a.headdim};
        step(head, a.headdim, a.d_state);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
