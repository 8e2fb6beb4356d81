// Causal depthwise convolution over time. Members take channels; within them a token's row is walked as it lies in
// memory, with the d_conv rows it depends on still in the first-level cache.
#include <cstring>

#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/conv1d.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/math-inl.h"
#include "ops/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// The input row `back` tokens before t, from the window if that is before the first token.
HWY_INLINE const float* input_row(const Conv1dArgs& a, int64_t t, int64_t back) {
  const int64_t s = t - back;
  return s >= 0 ? a.x + s * a.ld_x : a.window + (a.d_conv - 1 + s) * a.channels;
}

// One token with d_conv == 4, the width of all published models: its four rows, weights and outputs at channel 0.
struct Rows4 {
  const float *x0, *x1, *x2, *x3;
  const float *w0, *w1, *w2, *w3;
  const float* bias;
  float* out;
  int64_t ahead;  // from x3 to the next token, or 0
};

template <bool kSilu, class Span>
HWY_INLINE void step4(const Rows4& r, int64_t c, Span span) {
  __builtin_prefetch(r.x3 + r.ahead + c);  // rows lie too far apart for the hardware to foresee them
  Vec y = r.bias == nullptr ? hn::Zero(VecTag()) : span.load(r.bias + c);
  y = hn::MulAdd(span.load(r.w0 + c), span.load(r.x0 + c), y);
  y = hn::MulAdd(span.load(r.w1 + c), span.load(r.x1 + c), y);
  y = hn::MulAdd(span.load(r.w2 + c), span.load(r.x2 + c), y);
  y = hn::MulAdd(span.load(r.w3 + c), span.load(r.x3 + c), y);
  span.store(kSilu ? Silu(VecTag(), y) : y, r.out + c);
}

template <bool kSilu>
void token4(const Conv1dArgs& a, int64_t t, int64_t begin, int64_t end) {
  const int64_t ld = a.channels;
  const Rows4 r{input_row(a, t, 3), input_row(a, t, 2), input_row(a, t, 1), input_row(a, t, 0),
                a.weight,           a.weight + ld,      a.weight + 2 * ld,  a.weight + 3 * ld,
                a.bias,             a.out + t * a.ld_out, t + 1 < a.tokens ? a.ld_x : 0};
  int64_t c = begin;
  for (; c + kLanes <= end; c += kLanes) step4<kSilu>(r, c, Whole());
  if (c < end) step4<kSilu>(r, c, Rest{end - c});
}

// One token with any d_conv.
template <bool kSilu, class Span>
HWY_INLINE void step(const Conv1dArgs& a, int64_t t, int64_t c, Span span) {
  Vec y = a.bias == nullptr ? hn::Zero(VecTag()) : span.load(a.bias + c);
  for (int64_t k = 0; k < a.d_conv; ++k)
    y = hn::MulAdd(span.load(a.weight + k * a.channels + c), span.load(input_row(a, t, a.d_conv - 1 - k) + c), y);
  span.store(kSilu ? Silu(VecTag(), y) : y, a.out + t * a.ld_out + c);
}

template <bool kSilu>
void token(const Conv1dArgs& a, int64_t t, int64_t begin, int64_t end) {
  int64_t c = begin;
  for (; c + kLanes <= end; c += kLanes) step<kSilu>(a, t, c, Whole());
  if (c < end) step<kSilu>(a, t, c, Rest{end - c});
}

template <bool kSilu>
void convolve(const Conv1dArgs& a, int64_t begin, int64_t end) {
  for (int64_t t = 0; t < a.tokens; ++t) {
    if (a.d_conv == 4) {
      token4<kSilu>(a, t, begin, end);
    } else {
      token<kSilu>(a, t, begin, end);
    }
  }
}

// The last d_conv - 1 rows of window and x together.
void shift_window(const Conv1dArgs& a, int64_t begin, int64_t end) {
  const size_t bytes = static_cast<size_t>(end - begin) * sizeof(float);
  const int64_t rows = a.d_conv - 1;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = r + a.tokens;
    const float* row = from < rows ? a.window + from * a.channels : a.x + (from - rows) * a.ld_x;
    std::memcpy(a.window + r * a.channels + begin, row + begin, bytes);
  }
}

}  // namespace

void Conv1d(const Conv1dArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.channels, 16, &begin, &end);
  if (begin == end || a.tokens == 0) return;
  if (a.silu) {
    convolve<true>(a, begin, end);
  } else {
    convolve<false>(a, begin, end);
  }
  shift_window(a, begin, end);
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
