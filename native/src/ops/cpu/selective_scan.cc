// Selective scan. Lanes are channels, time is walked in order: a vector of channels keeps up to kGroup of its states in
// registers over a block of tokens. A channel's arithmetic is the same in every lane, block and split of the sequence,
// and its output adds its states in ascending order, so results have the same bits however the work is divided.
#include <algorithm>

#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/selective_scan.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/math-inl.h"
#include "ops/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Half of the registers hold states.
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_AVX2
constexpr int kGroup = 8;
#else
constexpr int kGroup = 16;
#endif

// Tokens whose delta, delta * u and y wait in the first-level cache while groups of states pass over them.
constexpr int64_t kTokens = 64;

struct Block {
  HWY_ALIGN float delta[kTokens * kLanes];
  HWY_ALIGN float delta_u[kTokens * kLanes];
  HWY_ALIGN float y[kTokens * kLanes];
};

constexpr float kLog2E = 1.44269504f;

// kStates states of the channels at e, from state n on, over `tokens` tokens of the block from token t on.
template <int kStates, class Span>
HWY_INLINE void scan_states(const SelectiveScanArgs& a, Block& block, int64_t e, int64_t n, const float* B,
                            const float* C, int64_t tokens, Span span) {
  const VecTag d;
  HWY_ALIGN float rate[kStates * kLanes];  // A log2(e)
  ArrayVec h[kStates];
#pragma GCC unroll 16
  for (int s = 0; s < kStates; ++s) {
    const int64_t at = (n + s) * a.d_inner + e;
    hn::Store(hn::Mul(span.load(a.A + at), hn::Set(d, kLog2E)), d, rate + s * kLanes);
    h[s] = span.load(a.state + at);
  }
  for (int64_t t = 0; t < tokens; ++t, B += a.ld_bc, C += a.ld_bc) {
    const Vec delta = hn::Load(d, block.delta + t * kLanes);
    const Vec delta_u = hn::Load(d, block.delta_u + t * kLanes);
    Vec y = hn::Load(d, block.y + t * kLanes);
#pragma GCC unroll 16
    for (int s = 0; s < kStates; ++s) {
      const Vec decay = Exp2(d, hn::Mul(delta, hn::Load(d, rate + s * kLanes)));
      h[s] = hn::MulAdd(decay, h[s], hn::Mul(delta_u, hn::Set(d, B[n + s])));
      y = hn::MulAdd(h[s], hn::Set(d, C[n + s]), y);
    }
    hn::Store(y, d, block.y + t * kLanes);
  }
#pragma GCC unroll 16
  for (int s = 0; s < kStates; ++s) span.store(h[s], a.state + (n + s) * a.d_inner + e);
}

// The channels at e, of group g, over tokens [t, t + tokens).
template <class Span>
HWY_INLINE void scan_block(const SelectiveScanArgs& a, Block& block, int64_t e, int64_t g, int64_t t, int64_t tokens,
                           Span span) {
  const VecTag d;
  const Vec bias = a.delta_bias == nullptr ? hn::Zero(d) : span.load(a.delta_bias + e);
  for (int64_t i = 0; i < tokens; ++i) {
    const float* u = a.u + (t + i) * a.ld_u + e;
    const float* delta = a.delta + (t + i) * a.ld_delta + e;
    // The next channels' lines: rows lie too far apart for the hardware to foresee them.
    __builtin_prefetch(u + kLanes);
    __builtin_prefetch(delta + kLanes);
    Vec v = hn::Add(span.load(delta), bias);
    if (a.delta_softplus) v = Softplus(d, v);
    hn::Store(v, d, block.delta + i * kLanes);
    hn::Store(hn::Mul(v, span.load(u)), d, block.delta_u + i * kLanes);
    hn::Store(hn::Zero(d), d, block.y + i * kLanes);
  }

  const float* B = a.B + t * a.ld_bc + g * a.d_state;
  const float* C = a.C + t * a.ld_bc + g * a.d_state;
  int64_t n = 0;
  for (; n + kGroup <= a.d_state; n += kGroup) scan_states<kGroup>(a, block, e, n, B, C, tokens, span);
  for (; n + 4 <= a.d_state; n += 4) scan_states<4>(a, block, e, n, B, C, tokens, span);
  for (; n < a.d_state; ++n) scan_states<1>(a, block, e, n, B, C, tokens, span);

  const Vec skip = a.D == nullptr ? hn::Zero(d) : span.load(a.D + e);
  for (int64_t i = 0; i < tokens; ++i) {
    Vec y = hn::Load(d, block.y + i * kLanes);
    if (a.D != nullptr) y = hn::MulAdd(skip, span.load(a.u + (t + i) * a.ld_u + e), y);
    if (a.z != nullptr) {
      const float* z = a.z + (t + i) * a.ld_z + e;
      __builtin_prefetch(z + kLanes);
      y = hn::Mul(y, Silu(d, span.load(z)));
    }
    span.store(y, a.out + (t + i) * a.ld_out + e);
  }
}

}  // namespace

void SelectiveScan(const SelectiveScanArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.d_inner, 16, &begin, &end);
  const int64_t group = a.d_inner / a.n_groups;
  Block block;
  for (int64_t t = 0; t < a.tokens; t += kTokens) {
    const int64_t tokens = std::min(kTokens, a.tokens - t);
    for (int64_t e = begin; e < end;) {
      const int64_t g = e / group;
      const int64_t stop = std::min(end, (g + 1) * group);
      for (; e + kLanes <= stop; e += kLanes) scan_block(a, block, e, g, t, tokens, Whole());
      if (e < stop) scan_block(a, block, e, g, t, tokens, Rest{stop - e});
      e = stop;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
