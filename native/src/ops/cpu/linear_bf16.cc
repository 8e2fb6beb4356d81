// Linear of bfloat16 weights and activations rounded to bfloat16, on AVX-512's products of such pairs (BF16).
//
// As in linear.cc, an output is a dot product of two rows as they lie, 32 elements a step: element i of its sums adds
// the products 2i and 2i + 1 of each step, in ascending order, and the sums are folded by a fixed tree. So its bits
// depend on nothing but the two rows. The processor's instruction rounds to nearest, takes subnormal numbers for zero
// and does not ask the mode of the thread.
#include <algorithm>
#include <cstring>

#include "ops/cpu/cpu_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_bf16.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/products-inl.h"
#include "ops/cpu/vec-inl.h"

#if defined(__x86_64__) && HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

void LinearDot(const LinearArgs&, const Share&);
int64_t LinearDotScratch(int64_t in, DType weight_dtype);

namespace {

// Tokens in a tile, and outputs for each number of tokens, so that all sums stay in registers.
constexpr int kTileTokens = 6;
constexpr int kOutputs[kTileTokens + 1] = {0, 8, 8, 6, 6, 4, 4};

constexpr int64_t kTokenBytes = 384 * 1024;  // of rounded tokens, in the second-level cache

// Of a rounded token: whole steps, and a line more, so that the tokens of a tile lie in different sets of the caches.
int64_t token_bytes(int64_t in) { return ((in + kDepth - 1) / kDepth + 1) * kLineBytes; }

int64_t block_tokens(int64_t in) {
  return std::max<int64_t>(kTileTokens, kTokenBytes / token_bytes(in) / kTileTokens * kTileTokens);
}

// The last step is filled up with zeros.
void round_token(const float* x, int64_t in, uint8_t* out) {
  for (int64_t left = in; left > 0; left -= kDepth, x += kDepth, out += kLineBytes)
    _mm512_store_si512(out, round_pairs(x, left));
}

// Each element of sum adds the products of its pairs in a and b.
HWY_INLINE void dot_pairs(__m512& sum, __m512i a, __m512i b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

template <int MT, int NT>
HWY_INLINE void step(__m512* HWY_RESTRICT acc, const uint8_t* x, int64_t ld_x, const __m512i (&w)[NT]) {
#pragma GCC unroll 8
  for (int i = 0; i < MT; ++i) {
    const __m512i xv = _mm512_load_si512(x + i * ld_x);
#pragma GCC unroll 8
    for (int j = 0; j < NT; ++j) dot_pairs(acc[i * NT + j], w[j], xv);
  }
}

struct Operands {
  const uint8_t* x;  // [MT] rounded tokens
  int64_t in;
  int64_t row_bytes;  // from one weight row to the next
  const float* bias;  // optional, of the tile's first output
  float* out;         // [MT, NT]
  int64_t ld_out;
};

// MT tokens x NT outputs. kAhead: whether to ask for the weights of the NT outputs after them, which are needed next;
// the hardware does not see that far because rows are short.
template <int MT, int NT, bool kAhead>
HWY_NOINLINE void tile(const Operands& a, const uint8_t* HWY_RESTRICT w) {
  constexpr int kTotal = MT * NT, kPadded = (kTotal + 3) / 4 * 4;
  __m512 acc[kPadded];
#pragma GCC unroll 32
  for (int i = 0; i < kPadded; ++i) acc[i] = _mm512_setzero_ps();

  const int64_t row_bytes = a.row_bytes, ld_x = token_bytes(a.in), whole = a.in / kDepth * kLineBytes;
  const uint8_t* HWY_RESTRICT x = a.x;
  const uint8_t* rows[NT];
#pragma GCC unroll 8
  for (int j = 0; j < NT; ++j) rows[j] = w + j * row_bytes;
  __m512i wv[NT];
  for (int64_t k = 0; k < whole; k += kLineBytes) {
    if constexpr (kAhead) {
#pragma GCC unroll 8
      for (int j = 0; j < NT; ++j) __builtin_prefetch(rows[j] + NT * row_bytes + k, 0, 3);
    }
#pragma GCC unroll 8
    for (int j = 0; j < NT; ++j) wv[j] = _mm512_loadu_si512(rows[j] + k);
    step<MT, NT>(acc, x + k, ld_x, wv);
  }
  if (a.in % kDepth != 0) {
    const __mmask32 rest = (__mmask32{1} << a.in % kDepth) - 1;
#pragma GCC unroll 8
    for (int j = 0; j < NT; ++j) wv[j] = _mm512_maskz_loadu_epi16(rest, rows[j] + whole);
    step<MT, NT>(acc, x + whole, ld_x, wv);
  }

  alignas(64) float sums[kPadded];
#pragma GCC unroll 8
  for (int i = 0; i < kPadded; i += 4)
    sum_lanes4(Vec{acc[i]}, Vec{acc[i + 1]}, Vec{acc[i + 2]}, Vec{acc[i + 3]}, sums + i);
  for (int i = 0; i < MT; ++i)
    for (int j = 0; j < NT; ++j)
      a.out[i * a.ld_out + j] = a.bias == nullptr ? sums[i * NT + j] : sums[i * NT + j] + a.bias[j];
}

// `tokens` tokens x NT outputs.
template <int NT, int MT>
void all_tokens(Operands o, int64_t tokens, const uint8_t* w, bool ahead) {
  for (; tokens >= MT; tokens -= MT, o.x += MT * token_bytes(o.in), o.out += MT * o.ld_out, ahead = false)
    ahead ? tile<MT, NT, true>(o, w) : tile<MT, NT, false>(o, w);
  if constexpr (MT > 1) {
    if (tokens > 0) all_tokens<NT, MT - 1>(o, tokens, w, ahead);
  }
}

// `tokens` rounded tokens x outputs [begin, end), in tiles of MT tokens or of all, if there are fewer.
template <int MT = kTileTokens>
void all_outputs(const LinearArgs& a, const uint8_t* x, int64_t tokens, float* out, int64_t begin, int64_t end) {
  if constexpr (MT > 1) {
    if (tokens < MT) return all_outputs<MT - 1>(a, x, tokens, out, begin, end);
  }
  constexpr int NT = kOutputs[MT];
  const int64_t row_bytes = a.ld_weight * 2;
  const auto* w = static_cast<const uint8_t*>(a.weight) + begin * row_bytes;
  const auto operands = [&](int64_t n) {
    return Operands{x, a.in, row_bytes, a.bias == nullptr ? nullptr : a.bias + n, out + n, a.ld_out};
  };
  int64_t n = begin;
  for (; n + NT <= end; n += NT, w += NT * row_bytes) all_tokens<NT, MT>(operands(n), tokens, w, true);
  for (; n < end; ++n, w += row_bytes) all_tokens<1, MT>(operands(n), tokens, w, false);
}

// Rounded tokens stay in the second-level cache while the weights pass, once for all of them.
void linear(const LinearArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.out_dim, 8, &begin, &end);
  auto* x = reinterpret_cast<uint8_t*>(share.scratch);
  const int64_t block = block_tokens(a.in);
  for (int64_t t = 0; t < a.tokens; t += block) {
    const int64_t tokens = std::min(block, a.tokens - t);
    for (int64_t i = 0; i < tokens; ++i) round_token(a.x + (t + i) * a.ld_x, a.in, x + i * token_bytes(a.in));
    all_outputs(a, x, tokens, a.out + t * a.ld_out, begin, end);
  }
}

}  // namespace

void LinearBf16(const LinearArgs& a, const Share& share) {
  if (a.weight_dtype == DType::kBF16 && a.activation_type == DType::kBF16) return linear(a, share);
  LinearDot(a, share);
}

int64_t LinearBf16Scratch(int64_t in, DType dtype) {
  const int64_t others = LinearDotScratch(in, dtype);
  if (dtype != DType::kBF16) return others;
  return std::max(others, block_tokens(in) * token_bytes(in) / static_cast<int64_t>(sizeof(float)));
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#endif
