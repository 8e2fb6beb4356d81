// Linear on the matrix units of x86-64 processors (AMX), for bfloat16 weights: these go into tiles as they lie in memory.
// Others would have to be widened for each use, which costs a single token more than the tiles gain.
//
// A float32 activation is the exact sum of three bfloat16 numbers, as 24 bits of significand are three times 8. So
// nothing is lost: products are exact and are added in float32, as anywhere else.
//
// Weights are the left operand, [16 outputs, 32 of in], activations the right one, [32 of in, 16 tokens]. Each output
// adds its products in one order, whatever the tokens beside it and the way here: so it has the same bits for one
// token and for a thousand.
#include <algorithm>
#include <cstring>

#include "ops/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_amx.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/tiles-inl.h"

#if M4J_AMX && HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

void Linear(const LinearArgs&, const Share&);
int64_t LinearScratch(int64_t in, DType weight_dtype);

namespace {

constexpr int64_t kPanelBytes = 1024 * 1024;  // of packed weights: half of the second-level cache
constexpr int64_t kBlockSteps = 4;  // 24 KB of activations of 32 tokens: half of the first-level cache

// Weights of a strip, 16 outputs, as a tile load finds them: packed, or where the rows lie in memory.
struct Weights {
  const uint8_t* p;
  int64_t stride;  // from one output to the next
  int64_t step;    // from one step to the next
};

// Adds kStrips x kTokenTiles tiles of products, each over `steps` steps, to c: [kStrips, 2, 16 outputs, 16 tokens].
// The strips of w follow each other at `strip_bytes`, the token tiles of x at `x_bytes`. kAhead: whether to ask for the
// same weights of the next 16 outputs.
template <int kStrips, int kTokenTiles, bool kAhead>
void multiply(const Weights& w, int64_t strip_bytes, const uint8_t* x, int64_t x_bytes, int64_t steps, bool first,
              float* c) {
  float *const c1 = c + kRows * kRows, *const c2 = c + 2 * kRows * kRows, *const c3 = c + 3 * kRows * kRows;
  if (first) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  } else {
    tile_load<0>(c, kLineBytes);
    if constexpr (kTokenTiles > 1) tile_load<1>(c1, kLineBytes);
    if constexpr (kStrips > 1) tile_load<2>(c2, kLineBytes);
    if constexpr (kStrips > 1 && kTokenTiles > 1) tile_load<3>(c3, kLineBytes);
  }
  const uint8_t* p = w.p;
  for (int64_t s = 0; s < steps; ++s, p += w.step, x += kParts * kTileBytes) {
    if constexpr (kAhead) {
      for (int64_t r = 0; r < kRows; ++r) __builtin_prefetch(p + (kRows + r) * w.stride, 0, 3);
    }
    tile_load<4>(p, w.stride);
    if constexpr (kStrips > 1) tile_load<5>(p + strip_bytes, w.stride);
#pragma GCC unroll 3
    for (int j = 0; j < kParts; ++j) {
      tile_load<6>(x + j * kTileBytes, kLineBytes);
      tile_dot<0, 4, 6>();
      if constexpr (kStrips > 1) tile_dot<2, 5, 6>();
      if constexpr (kTokenTiles > 1) {
        tile_load<7>(x + x_bytes + j * kTileBytes, kLineBytes);
        tile_dot<1, 4, 7>();
        if constexpr (kStrips > 1) tile_dot<3, 5, 7>();
      }
    }
  }
  tile_store<0>(c, kLineBytes);
  if constexpr (kTokenTiles > 1) tile_store<1>(c1, kLineBytes);
  if constexpr (kStrips > 1) tile_store<2>(c2, kLineBytes);
  if constexpr (kStrips > 1 && kTokenTiles > 1) tile_store<3>(c3, kLineBytes);
}

// The same of one strip and one token: c is [16 outputs].
template <bool kAhead>
void multiply_token(const Weights& w, const uint8_t* x, int64_t steps, bool first, float* c) {
  constexpr int64_t kStride = kParts * sizeof(float);
  first ? tile_zero<0>() : tile_load<0>(c, sizeof(float));
  const uint8_t* p = w.p;
  for (int64_t s = 0; s < steps; ++s, p += w.step, x += kRows * kStride) {
    if constexpr (kAhead) {
      for (int64_t r = 0; r < kRows; ++r) __builtin_prefetch(p + (kRows + r) * w.stride, 0, 3);
    }
    tile_load<4>(p, w.stride);
#pragma GCC unroll 3
    for (int j = 0; j < kParts; ++j) {
      tile_load<6>(x + j * sizeof(float), kStride);
      tile_dot<0, 4, 6>();
    }
  }
  tile_store<0>(c, sizeof(float));
}

// multiply for a strip and, kTokens being 1 or 16, one or at most 16 tokens.
template <int kTokens, bool kAhead>
void multiply_few(const Weights& w, const uint8_t* x, int64_t steps, bool first, float* c) {
  if constexpr (kTokens == 1) {
    multiply_token<kAhead>(w, x, steps, first, c);
  } else {
    multiply<1, 1, kAhead>(w, 0, x, 0, steps, first, c);
  }
}

// c to the outputs [n, n + rows) of `tokens` tokens.
template <int kTokens>
void finish(const LinearArgs& a, const float* c, int64_t token, int64_t tokens, int64_t n, int64_t rows) {
  const __mmask16 mask = first_lanes(rows);
  const __m512 bias = a.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, a.bias + n);
  float* out = a.out + token * a.ld_out + n;
  if constexpr (kTokens == 1) {
    _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(_mm512_load_ps(c), bias));
  } else {
    __m512 v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = _mm512_load_ps(c + 16 * i);
    transpose(v);
    for (int64_t t = 0; t < tokens; ++t, out += a.ld_out) _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(v[t], bias));
  }
}

int64_t steps_of(int64_t in) { return (in + kDepth - 1) / kDepth; }

int64_t panel_strips(int64_t in) {
  return std::max<int64_t>(2, kPanelBytes / (steps_of(in) * kTileBytes) / 2 * 2);
}

constexpr int64_t row_bytes_of(const LinearArgs& a) { return a.ld_weight * 2; }

const uint8_t* row_of(const LinearArgs& a, int64_t n) {
  return static_cast<const uint8_t*>(a.weight) + n * row_bytes_of(a);
}

// At most 16 tokens, kTokens is 1 or 16: weights pass once, from memory.
template <int kTokens>
void few_tokens(const LinearArgs& a, const Share& share) {
  constexpr int64_t kStepBytes = kParts * 4 * kRows * kTokens;  // of x
  const int64_t row_bytes = row_bytes_of(a), whole = a.in / kDepth, rest = a.in % kDepth;
  int64_t begin, end;
  share.range(a.out_dim, kRows, &begin, &end);
  if (begin == end) return;
  uint8_t* x = reinterpret_cast<uint8_t*>(share.scratch);
  uint8_t* packed = x + steps_of(a.in) * kStepBytes;
  kTokens == 1 ? split_token(a.x, a.in, x) : split_tokens(a.x, a.ld_x, a.tokens, a.in, x);
  alignas(64) float c[kRows * kTokens];
  const Tiles tiles(kTokens);
  for (int64_t n = begin; n < end; n += kRows) {
    const int64_t rows = std::min(kRows, end - n);
    // Whole tiles where they lie; the last step of a row and the last rows would reach beyond the weights.
    const int64_t in_place = rows == kRows ? whole : 0;
    multiply_few<kTokens, true>({row_of(a, n), row_bytes, kLineBytes}, x, in_place, true, c);
    if (in_place < whole || rest > 0) {
      pack_strip(row_of(a, n) + in_place * kLineBytes, row_bytes, rows, a.in - in_place * kDepth, packed);
      multiply_few<kTokens, false>({packed, kLineBytes, kTileBytes}, x + in_place * kStepBytes,
                                   steps_of(a.in) - in_place, false, c);
    }
    finish<kTokens>(a, c, 0, a.tokens, n, rows);
  }
}

// `strips` packed strips x kTokenTiles tiles of tokens.
template <int kTokenTiles>
void sweep(const uint8_t* panel, int64_t strips, const uint8_t* x, int64_t in, float* c) {
  const int64_t steps = steps_of(in), strip_bytes = steps * kTileBytes, x_bytes = steps * kParts * kTileBytes;
  for (int64_t s = 0; s < steps; s += kBlockSteps) {
    const int64_t count = std::min(kBlockSteps, steps - s);
    const uint8_t *w = panel + s * kTileBytes, *xs = x + s * kParts * kTileBytes;
    int64_t i = 0;
    for (; i + 2 <= strips; i += 2)
      multiply<2, kTokenTiles, false>({w + i * strip_bytes, kLineBytes, kTileBytes}, strip_bytes, xs, x_bytes, count,
                                      s == 0, c + i * 2 * kRows * kRows);
    if (i < strips)
      multiply<1, kTokenTiles, false>({w + i * strip_bytes, kLineBytes, kTileBytes}, 0, xs, x_bytes, count, s == 0,
                                      c + i * 2 * kRows * kRows);
  }
}

// The outputs [begin, end) of the tokens [first, last): panels of weights stay in the second-level cache while all
// tokens pass, 32 at a time. Splitting these again for each panel is cheaper than reading their parts from further away.
void many_tokens(const LinearArgs& a, float* scratch, int64_t first, int64_t last, int64_t begin, int64_t end) {
  const int64_t steps = steps_of(a.in), strips = panel_strips(a.in);
  const int64_t strip_bytes = steps * kTileBytes, x_bytes = steps * kParts * kTileBytes;
  float* c = scratch;  // [strips, 2, 16, 16]
  uint8_t* panel = reinterpret_cast<uint8_t*>(c + strips * 2 * kRows * kRows);
  uint8_t* x = panel + strips * strip_bytes;
  const Tiles tiles(kRows);
  for (int64_t n = begin; n < end; n += strips * kRows) {
    const int64_t outputs = std::min(strips * kRows, end - n), used = (outputs + kRows - 1) / kRows;
    for (int64_t i = 0; i < used; ++i)
      pack_strip(row_of(a, n + i * kRows), row_bytes_of(a), outputs - i * kRows, a.in, panel + i * strip_bytes);
    for (int64_t t = first; t < last; t += 2 * kRows) {
      const int64_t tokens = std::min(2 * kRows, last - t);
      split_tokens(a.x + t * a.ld_x, a.ld_x, std::min(kRows, tokens), a.in, x);
      if (tokens > kRows) {
        split_tokens(a.x + (t + kRows) * a.ld_x, a.ld_x, tokens - kRows, a.in, x + x_bytes);
        sweep<2>(panel, used, x, a.in, c);
      } else {
        sweep<1>(panel, used, x, a.in, c);
      }
      for (int64_t h = 0; h < tokens; h += kRows) {
        for (int64_t i = 0; i < used; ++i)
          finish<kRows>(a, c + (i * 2 + h / kRows) * kRows * kRows, t + h, std::min(kRows, tokens - h), n + i * kRows,
                        std::min(kRows, outputs - i * kRows));
      }
    }
  }
}

// A team as a grid of tokens x outputs. Cycles of a member for a step: a pair of tiles takes 48, 16 split tokens 210,
// 16 packed outputs 150.
int token_parts(int64_t tokens, int64_t outputs, int count) {
  int best = 1;
  int64_t least = INT64_MAX;
  for (int parts = 1; parts <= count; ++parts) {
    if (count % parts != 0) continue;
    const auto tiles = [](int64_t n, int64_t p) { return ((n + kRows - 1) / kRows + p - 1) / p; };
    const int64_t x = tiles(tokens, parts), w = tiles(outputs, count / parts), cost = 48 * x * w + 210 * x + 150 * w;
    if (cost < least) least = cost, best = parts;
  }
  return best;
}

}  // namespace

void LinearAmx(const LinearArgs& a, const Share& share) {
  if (a.weight_dtype != DType::kBF16) return Linear(a, share);
  if (a.tokens == 1) return few_tokens<1>(a, share);
  if (a.tokens <= kRows) return few_tokens<kRows>(a, share);
  const int parts = token_parts(a.tokens, a.out_dim, share.count), columns = share.count / parts;
  int64_t first, last, begin, end;
  Share{share.index / columns, parts, nullptr, 0}.range(a.tokens, kRows, &first, &last);
  Share{share.index % columns, columns, nullptr, 0}.range(a.out_dim, kRows, &begin, &end);
  if (first < last && begin < end) many_tokens(a, share.scratch, first, last, begin, end);
}

int64_t LinearAmxScratch(int64_t in, DType dtype) {
  if (dtype != DType::kBF16) return LinearScratch(in, dtype);
  const int64_t steps = steps_of(in);
  return (panel_strips(in) * (steps + 2) + 2 * steps * kParts) * kTileBytes / static_cast<int64_t>(sizeof(float));
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#endif
