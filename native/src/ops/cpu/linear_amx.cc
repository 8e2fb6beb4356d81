// Linear on the matrix units of x86-64 processors (AMX), for weights that go into tiles as they lie in memory: here
// bfloat16, int8 in linear_amx_q8.cc. Others would have to be widened for each use, which costs a single token more
// than the tiles gain.
//
// A float32 activation is the exact sum of three bfloat16 numbers, as 24 bits of significand are three times 8. So
// nothing is lost: products are exact and are added in float32, as anywhere else. Where activations may be rounded to
// bfloat16, one part is all.
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
void LinearDot(const LinearArgs&, const Share&);
int64_t LinearDotScratch(int64_t in, DType weight_dtype);
void LinearAmxQ8(const LinearArgs&, const Share&);
int64_t LinearAmxQ8Scratch(int64_t in);

namespace {

constexpr int kExact = 3, kRounded = 1;  // parts of an activation

constexpr int64_t kPanelBytes = 1024 * 1024;  // of packed weights: half of the second-level cache

// v to the nearest bfloat16; v keeps what is left, exactly.
HWY_INLINE __m512 take_part(__m512& v) {
  const __m512i rounded = _mm512_add_epi32(bits(v), _mm512_set1_epi32(0x8000));
  const __m512 part = _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(-0x10000)));
  v = _mm512_sub_ps(v, part);
  return part;
}

// The three parts of a and b in pairs: part i of a in the lower, of b in the upper half of each element. What two parts
// leave has at most 8 bits.
HWY_INLINE void split(__m512 a, __m512 b, __m512i (&parts)[kExact]) {
#pragma GCC unroll 3
  for (int i = 0; i < kExact; ++i) {
    const __m512 pa = i + 1 < kExact ? take_part(a) : a, pb = i + 1 < kExact ? take_part(b) : b;
    parts[i] = _mm512_or_si512(_mm512_srli_epi32(bits(pa), 16), bits(pb));
  }
}

// x of one token to steps of [16 pairs, kParts]: the parts lie beside each other, like tokens.
template <int kParts>
void split_token(const float* x, int64_t in, uint8_t* out) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t left = in; left > 0; left -= kDepth, x += kDepth) {
    if constexpr (kParts == kRounded) {
      _mm512_store_si512(out, round_pairs(x, left));
      out += kLineBytes;
    } else {
      const __m512 a = load_upto16(x, left), b = load_upto16(x + 16, left - 16);
      __m512i parts[kParts];
      split(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b), parts);
      alignas(64) uint32_t lanes[kParts][16];
      for (int i = 0; i < kParts; ++i) _mm512_store_si512(lanes[i], parts[i]);
      for (int l = 0; l < 16; ++l)
        for (int i = 0; i < kParts; ++i, out += 4) std::memcpy(out, &lanes[i][l], 4);
    }
  }
}

// x of at most 16 tokens to steps of [kParts, 16 pairs, 16 tokens]; the last token fills the rest.
template <int kParts>
void split_tokens(const float* x, int64_t ld, int64_t tokens, int64_t in, uint8_t* out) {
  for (int64_t left = in; left > 0; left -= kDepth, x += kDepth, out += kParts * kTileBytes) {
    __m512 v[16];
    if constexpr (kParts == kRounded) {
#pragma GCC unroll 16
      for (int64_t t = 0; t < 16; ++t) v[t] = _mm512_castsi512_ps(round_pairs(x + std::min(t, tokens - 1) * ld, left));
      transpose(v);
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) _mm512_store_ps(out + i * kLineBytes, v[i]);
    } else {
      for (int64_t half = 0; half < 2; ++half) {
#pragma GCC unroll 16
        for (int64_t t = 0; t < 16; ++t)
          v[t] = load_upto16(x + std::min(t, tokens - 1) * ld + 16 * half, left - 16 * half);
        transpose(v);
#pragma GCC unroll 8
        for (int64_t i = 0; i < 8; ++i) {
          __m512i parts[kParts];
          split(v[2 * i], v[2 * i + 1], parts);
          for (int j = 0; j < kParts; ++j)
            _mm512_store_si512(out + j * kTileBytes + (8 * half + i) * kLineBytes, parts[j]);
        }
      }
    }
  }
}

// The bfloat16 weights of 16 outputs to one tile a step; if there are fewer rows, the last one fills the rest.
void pack_strip(const uint8_t* w, int64_t row_bytes, int64_t rows, int64_t in, uint8_t* out) {
  for (int64_t r = 0; r < kRows; ++r) {
    const uint8_t* p = w + std::min(r, rows - 1) * row_bytes;
    uint8_t* to = out + r * kLineBytes;
    for (int64_t left = in; left > 0; left -= kDepth, p += kLineBytes, to += kTileBytes) {
      const __mmask32 mask = left >= kDepth ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
      _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, p));
    }
  }
}

// Weights of a strip, 16 outputs, as a tile load finds them: packed, or where the rows lie in memory.
struct Weights {
  const uint8_t* p;
  int64_t stride;  // from one output to the next
  int64_t step;    // from one step to the next
};

// Adds kStrips x kTokenTiles tiles of products, each over `steps` steps, to c: [kStrips, 2, 16 outputs, 16 tokens].
// The strips of w follow each other at `strip_bytes`, the token tiles of x at `x_bytes`. kAhead: whether to ask for the
// same weights of the next 16 outputs.
template <int kParts, int kStrips, int kTokenTiles, bool kAhead>
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
template <int kParts, bool kAhead>
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
template <int kParts, int kTokens, bool kAhead>
void multiply_few(const Weights& w, const uint8_t* x, int64_t steps, bool first, float* c) {
  if constexpr (kTokens == 1) {
    multiply_token<kParts, kAhead>(w, x, steps, first, c);
  } else {
    multiply<kParts, 1, 1, kAhead>(w, 0, x, 0, steps, first, c);
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
template <int kParts, int kTokens>
void few_tokens(const LinearArgs& a, const Share& share) {
  constexpr int64_t kStepBytes = kParts * 4 * kRows * kTokens;  // of x
  const int64_t row_bytes = row_bytes_of(a), whole = a.in / kDepth, rest = a.in % kDepth;
  int64_t begin, end;
  share.range(a.out_dim, kRows, &begin, &end);
  if (begin == end) return;
  uint8_t* x = reinterpret_cast<uint8_t*>(share.scratch);
  uint8_t* packed = x + steps_of(a.in) * kStepBytes;
  kTokens == 1 ? split_token<kParts>(a.x, a.in, x) : split_tokens<kParts>(a.x, a.ld_x, a.tokens, a.in, x);
  alignas(64) float c[kRows * kTokens];
  const Tiles tiles(kTokens, kLineBytes);
  for (int64_t n = begin; n < end; n += kRows) {
    const int64_t rows = std::min(kRows, end - n);
    // Whole tiles where they lie; the last step of a row and the last rows would reach beyond the weights.
    const int64_t in_place = rows == kRows ? whole : 0;
    multiply_few<kParts, kTokens, true>({row_of(a, n), row_bytes, kLineBytes}, x, in_place, true, c);
    if (in_place < whole || rest > 0) {
      pack_strip(row_of(a, n) + in_place * kLineBytes, row_bytes, rows, a.in - in_place * kDepth, packed);
      multiply_few<kParts, kTokens, false>({packed, kLineBytes, kTileBytes}, x + in_place * kStepBytes,
                                           steps_of(a.in) - in_place, false, c);
    }
    store_outputs<kTokens>(a, c, 0, a.tokens, n, rows);
  }
}

// `strips` packed strips x kTokenTiles tiles of tokens.
template <int kParts, int kTokenTiles>
void sweep(const uint8_t* panel, int64_t strips, const uint8_t* x, int64_t in, float* c) {
  const int64_t steps = steps_of(in), strip_bytes = steps * kTileBytes, x_bytes = steps * kParts * kTileBytes;
  constexpr int64_t kBlockSteps = 12 / kParts;  // 24 KB of activations of 32 tokens: half of the first-level cache
  for (int64_t s = 0; s < steps; s += kBlockSteps) {
    const int64_t count = std::min(kBlockSteps, steps - s);
    const uint8_t *w = panel + s * kTileBytes, *xs = x + s * kParts * kTileBytes;
    int64_t i = 0;
    for (; i + 2 <= strips; i += 2)
      multiply<kParts, 2, kTokenTiles, false>({w + i * strip_bytes, kLineBytes, kTileBytes}, strip_bytes, xs, x_bytes,
                                              count, s == 0, c + i * 2 * kRows * kRows);
    if (i < strips)
      multiply<kParts, 1, kTokenTiles, false>({w + i * strip_bytes, kLineBytes, kTileBytes}, 0, xs, x_bytes, count,
                                              s == 0, c + i * 2 * kRows * kRows);
  }
}

// More tokens: panels of weights stay in the second-level cache while all tokens pass, 32 at a time. Splitting these
// again for each panel is cheaper than reading their parts from further away.
template <int kParts>
void many_tokens(const LinearArgs& a, const Share& share) {
  const Part part(a, share, {16 * kParts, 70 * kParts, 150});
  if (part.empty()) return;
  const int64_t steps = steps_of(a.in), strips = panel_strips(a.in);
  const int64_t strip_bytes = steps * kTileBytes, x_bytes = steps * kParts * kTileBytes;
  float* c = share.scratch;  // [strips, 2, 16, 16]
  uint8_t* panel = reinterpret_cast<uint8_t*>(c + strips * 2 * kRows * kRows);
  uint8_t* x = panel + strips * strip_bytes;
  const Tiles tiles(kRows, kLineBytes);
  for (int64_t n = part.begin; n < part.end; n += strips * kRows) {
    const int64_t outputs = std::min(strips * kRows, part.end - n), used = (outputs + kRows - 1) / kRows;
    for (int64_t i = 0; i < used; ++i)
      pack_strip(row_of(a, n + i * kRows), row_bytes_of(a), outputs - i * kRows, a.in, panel + i * strip_bytes);
    for (int64_t t = part.first; t < part.last; t += 2 * kRows) {
      const int64_t tokens = std::min(2 * kRows, part.last - t);
      split_tokens<kParts>(a.x + t * a.ld_x, a.ld_x, std::min(kRows, tokens), a.in, x);
      if (tokens > kRows) {
        split_tokens<kParts>(a.x + (t + kRows) * a.ld_x, a.ld_x, tokens - kRows, a.in, x + x_bytes);
        sweep<kParts, 2>(panel, used, x, a.in, c);
      } else {
        sweep<kParts, 1>(panel, used, x, a.in, c);
      }
      for (int64_t h = 0; h < tokens; h += kRows) {
        for (int64_t i = 0; i < used; ++i)
          store_outputs<kRows>(a, c + (i * 2 + h / kRows) * kRows * kRows, t + h, std::min(kRows, tokens - h),
                               n + i * kRows, std::min(kRows, outputs - i * kRows));
      }
    }
  }
}

template <int kParts>
void linear(const LinearArgs& a, const Share& share) {
  if (a.tokens == 1) return few_tokens<kParts, 1>(a, share);
  if (a.tokens <= kRows) return few_tokens<kParts, kRows>(a, share);
  many_tokens<kParts>(a, share);
}

}  // namespace

void LinearAmx(const LinearArgs& a, const Share& share) {
  if (a.weight_dtype == DType::kQ8_0) return LinearAmxQ8(a, share);
  if (a.weight_dtype == DType::kQ4_0) return LinearDot(a, share);
  if (a.weight_dtype != DType::kBF16) return Linear(a, share);
  a.activation_type == DType::kBF16 ? linear<kRounded>(a, share) : linear<kExact>(a, share);
}

int64_t LinearAmxScratch(int64_t in, DType dtype) {
  if (dtype == DType::kQ8_0) return LinearAmxQ8Scratch(in);
  if (dtype == DType::kQ4_0) return LinearDotScratch(in, dtype);
  if (dtype != DType::kBF16) return LinearScratch(in, dtype);
  const int64_t steps = steps_of(in);
  return (panel_strips(in) * (steps + 2) + 2 * steps * kExact) * kTileBytes / static_cast<int64_t>(sizeof(float));
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#endif
