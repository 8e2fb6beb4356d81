// out = x weight^T + bias, from one token (decode) to thousands (prefill), on weights as they lie in the checkpoint.
//
// The weight rows [out, in] are contiguous in `in`, and so are the tokens [T, in]; so a tile of tokens x outputs is a
// set of dot products over vectors of `in`, with neither packing nor transposition. Each output has one vector of
// partial sums, filled in ascending order and folded by a fixed tree. Its bits therefore depend on nothing but the two
// rows: not on the tile it falls into, the batch, or the number of threads.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kLineBytes = 64;

// Weights that are needed next, asked for line by line while others are multiplied.
class Ahead {
 public:
  Ahead(const uint8_t* begin, int64_t bytes) : next_(begin), left_(bytes) {}

  // Where to begin and how far to go from step to step, for so many steps.
  const uint8_t* take(int64_t steps, int64_t* stride) {
    const uint8_t* begin = next_;
    *stride = left_ > 0 ? kLineBytes : 0;
    next_ += steps * *stride;
    left_ -= steps * *stride;
    return begin;
  }

 private:
  const uint8_t* next_;
  int64_t left_;
};

struct Operands {
  const float* x;  // [MT, in]
  int64_t ld_x;
  int64_t row_bytes;  // from one weight row to the next, in place
  int64_t in;
  const float* bias;  // optional, of the tile's first output
  float* out;         // [MT, NT]
  int64_t ld_out;
  Ahead* ahead;  // of Layout::kPackedAhead
};

// How a tile finds its weights: in place, row by row; or packed, the NT rows interleaved vector by vector, zero-padded,
// and whether it asks for others meanwhile.
enum class Layout { kInPlace, kPacked, kPackedAhead };

// The rows of a tile; all of them are walked with one offset.
template <int NT>
struct Rows {
  const uint8_t* p[NT];
};

// acc += the products of one step, whose weights lie at `offset` in each row.
template <class W, int MT, int NT>
HWY_INLINE void step(ArrayVec* HWY_RESTRICT acc, const float* HWY_RESTRICT x, int64_t ld_x, const Rows<NT>& rows,
                     int64_t offset) {
  ArrayVec wv[NT][W::kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < NT; ++j) W::load(rows.p[j] + offset, wv[j]);
#pragma GCC unroll 8
  for (int i = 0; i < MT; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < W::kVectors; ++v) {
      const Vec xv = hn::LoadU(VecTag(), x + i * ld_x + v * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < NT; ++j) acc[i * NT + j] = hn::MulAdd(wv[j][v], xv, acc[i * NT + j]);
    }
  }
}

// MT tokens x NT outputs. In place, it also asks for the weights of the NT outputs after its own, which a single pass
// over the weights needs next; the hardware does not see that far because rows are short.
template <class W, Layout kLayout, int MT, int NT>
HWY_NOINLINE void tile(const Operands& a, const uint8_t* HWY_RESTRICT w) {
  constexpr bool kPacked = kLayout != Layout::kInPlace;
  constexpr bool kPrefetch = !kPacked && NT > 1;
  constexpr int kTotal = MT * NT, kPadded = (kTotal + 3) / 4 * 4;
  constexpr int64_t kStep = W::kVectors * kLanes;
  constexpr int64_t kStepBytes = W::offset(kStep) * (kPacked ? NT : 1);
  constexpr int64_t kLineSteps = std::max<int64_t>(1, kLineBytes / kStepBytes);
  const VecTag d;
  ArrayVec acc[kPadded];
#pragma GCC unroll 32
  for (int i = 0; i < kPadded; ++i) acc[i] = hn::Zero(d);

  const int64_t ld_x = a.ld_x, row_bytes = kPacked ? W::offset(kLanes) : a.row_bytes;
  const float* HWY_RESTRICT x = a.x;
  const int64_t whole = a.in - a.in % kStep;
  Rows<NT> rows;
#pragma GCC unroll 8
  for (int j = 0; j < NT; ++j) rows.p[j] = w + j * row_bytes;
  int64_t k = 0, offset = 0;
  if constexpr (kPrefetch) {
    const int64_t ahead = NT * row_bytes;
    for (; k + kLineSteps * kStep <= whole; k += kLineSteps * kStep) {
#pragma GCC unroll 8
      for (int j = 0; j < NT; ++j) __builtin_prefetch(rows.p[j] + ahead + offset, 0, 3);
#pragma GCC unroll 8
      for (int64_t s = 0; s < kLineSteps; ++s, offset += kStepBytes)
        step<W, MT, NT>(acc, x + k + s * kStep, ld_x, rows, offset);
    }
  }
  if constexpr (kLayout == Layout::kPackedAhead) {
    int64_t stride;
    const uint8_t* ahead = a.ahead->take(whole / kStep, &stride);
    for (; k < whole; k += kStep, offset += kStepBytes, ahead += stride) {
      __builtin_prefetch(ahead, 0, 2);
      step<W, MT, NT>(acc, x + k, ld_x, rows, offset);
    }
  } else {
    for (; k < whole; k += kStep, offset += kStepBytes) step<W, MT, NT>(acc, x + k, ld_x, rows, offset);
  }
  if constexpr (W::kVectors == 1) {
    if (whole < a.in) {  // the last, partial vector, filled up with zeros
      const int64_t rest = a.in - whole;
      ArrayVec wv[NT];
#pragma GCC unroll 8
      for (int j = 0; j < NT; ++j) wv[j] = W::load_part(rows.p[j] + offset, rest);
#pragma GCC unroll 8
      for (int i = 0; i < MT; ++i) {
        const Vec xv = load_part(x + i * ld_x + whole, rest);
#pragma GCC unroll 8
        for (int j = 0; j < NT; ++j) acc[i * NT + j] = hn::MulAdd(wv[j], xv, acc[i * NT + j]);
      }
    }
  }

  if constexpr (NT % 4 == 0) {
    const hn::CappedTag<float, 4> d4;
#pragma GCC unroll 8
    for (int i = 0; i < MT; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < NT; j += 4) {
        const ArrayVec* v = acc + i * NT + j;
        float* out = a.out + i * a.ld_out + j;
        sum_lanes4(v[0], v[1], v[2], v[3], out);
        if (a.bias != nullptr) hn::StoreU(hn::Add(hn::LoadU(d4, out), hn::LoadU(d4, a.bias + j)), d4, out);
      }
    }
  } else {
    HWY_ALIGN float sums[kPadded];
#pragma GCC unroll 8
    for (int i = 0; i < kPadded; i += 4) sum_lanes4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3], sums + i);
    for (int i = 0; i < MT; ++i)
      for (int j = 0; j < NT; ++j)
        a.out[i * a.ld_out + j] = a.bias == nullptr ? sums[i * NT + j] : sums[i * NT + j] + a.bias[j];
  }
}

// Tokens in a tile, and outputs for each number of tokens, so that all sums stay in registers.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kMaxTokens = 6;
constexpr int kOutputs[kMaxTokens + 1] = {0, 8, 8, 6, 6, 4, 4};
#else
constexpr int kMaxTokens = 4;
constexpr int kOutputs[kMaxTokens + 1] = {0, 8, 4, 4, 3};
#endif

// MT tokens x outputs [begin, end), whose weights start at w; NT outputs a tile, single ones at the end.
template <class W, Layout kLayout, int MT, int NT>
void strip(const LinearArgs& a, const float* x, float* out, const uint8_t* w, int64_t row_bytes, int64_t begin,
           int64_t end, Ahead* ahead) {
  Operands o{x, a.ld_x, row_bytes, a.in, nullptr, nullptr, a.ld_out, ahead};
  int64_t n = begin;
  for (; n + NT <= end; n += NT, w += NT * row_bytes) {
    o.bias = a.bias == nullptr ? nullptr : a.bias + n;
    o.out = out + n;
    tile<W, kLayout, MT, NT>(o, w);
  }
  for (; n < end; ++n, w += row_bytes) {
    o.bias = a.bias == nullptr ? nullptr : a.bias + n;
    o.out = out + n;
    tile<W, kLayout, MT, 1>(o, w);
  }
}

// All tokens (at most kMaxTokens) x outputs [begin, end).
template <class W, Layout kLayout, int MT = kMaxTokens>
void few_tokens(const LinearArgs& a, int64_t tokens, const float* x, float* out, const uint8_t* w, int64_t row_bytes,
                int64_t begin, int64_t end, Ahead* ahead) {
  if (tokens == MT) {
    constexpr int NT = kLayout != Layout::kInPlace ? kOutputs[kMaxTokens] : kOutputs[MT];
    strip<W, kLayout, MT, NT>(a, x, out, w, row_bytes, begin, end, ahead);
  } else if constexpr (MT > 1) {
    few_tokens<W, kLayout, MT - 1>(a, tokens, x, out, w, row_bytes, begin, end, ahead);
  }
}

// Bytes of float32 weights in a panel: it lies in the second-level cache while all tokens pass over it. Processors with
// AVX-512 have one of 1 MB and more.
constexpr int64_t kPanelBytes = (HWY_TARGET <= HWY_AVX3 ? 384 : 256) * 1024;

int64_t panel_outputs(int64_t in) {
  constexpr int64_t NT = kOutputs[kMaxTokens];
  return std::max<int64_t>(NT, kPanelBytes / (round_up(in) * 4) / NT * NT);
}

// NT rows to float32, interleaved vector by vector.
template <class W, int NT>
void pack_rows(const uint8_t* HWY_RESTRICT w, int64_t row_bytes, int64_t in, float* HWY_RESTRICT out) {
  constexpr int64_t kStep = W::kVectors * kLanes;
  int64_t k = 0;
  for (; k + kStep <= in; k += kStep, out += NT * kStep) {
    for (int j = 0; j < NT; ++j) {
      ArrayVec v[W::kVectors];
      W::load(w + j * row_bytes + W::offset(k), v);
      for (int i = 0; i < W::kVectors; ++i) hn::Store(v[i], VecTag(), out + (i * NT + j) * kLanes);
    }
  }
  if constexpr (W::kVectors == 1) {
    if (k == in) return;
    for (int j = 0; j < NT; ++j, out += kLanes) {
      hn::Store(hn::Zero(VecTag()), VecTag(), out);
      for (int64_t l = 0; k + l < in; ++l) out[l] = W::widen(w + j * row_bytes + W::offset(k + l));
    }
  }
}

template <class W>
void pack_panel(const uint8_t* HWY_RESTRICT w, int64_t row_bytes, int64_t rows, int64_t in, float* HWY_RESTRICT out) {
  constexpr int NT = kOutputs[kMaxTokens];
  for (; rows >= NT; rows -= NT, w += NT * row_bytes, out += NT * round_up(in)) pack_rows<W, NT>(w, row_bytes, in, out);
  for (; rows > 0; --rows, w += row_bytes, out += round_up(in)) pack_rows<W, 1>(w, row_bytes, in, out);
}

// With so many tokens, reading weights takes as long as multiplying them.
constexpr int64_t kAheadTokens = 64;

template <Layout kLayout>
void all_tokens(const LinearArgs& a, const float* panel, int64_t begin, int64_t end, Ahead* ahead) {
  for (int64_t t = 0; t < a.tokens; t += kMaxTokens)
    few_tokens<F32Weight, kLayout>(a, std::min<int64_t>(kMaxTokens, a.tokens - t), a.x + t * a.ld_x,
                                   a.out + t * a.ld_out, reinterpret_cast<const uint8_t*>(panel),
                                   F32Weight::offset(round_up(a.in)), begin, end, ahead);
}

template <class W>
void linear(const LinearArgs& a, const Share& share) {
  // Asking for float32 rows keeps the way from the second-level cache so busy that more is lost than won.
  constexpr bool kAhead = !std::is_same_v<W, F32Weight>;
  const auto* w = static_cast<const uint8_t*>(a.weight);
  const int64_t row_bytes = W::offset(a.ld_weight);
  int64_t begin, end;
  share.range(a.out_dim, 8, &begin, &end);
  if (a.tokens <= kMaxTokens) {
    few_tokens<W, Layout::kInPlace>(a, a.tokens, a.x, a.out, w + begin * row_bytes, row_bytes, begin, end, nullptr);
    return;
  }
  const int64_t outputs = panel_outputs(a.in);
  for (int64_t n = begin; n < end; n += outputs) {
    const int64_t stop = std::min(n + outputs, end);
    Ahead ahead(w + stop * row_bytes, (std::min(stop + outputs, end) - stop) * row_bytes);
    pack_panel<W>(w + n * row_bytes, row_bytes, stop - n, a.in, share.scratch);
    kAhead && a.tokens <= kAheadTokens ? all_tokens<Layout::kPackedAhead>(a, share.scratch, n, stop, &ahead)
                                       : all_tokens<Layout::kPacked>(a, share.scratch, n, stop, nullptr);
  }
}

}  // namespace

void Linear(const LinearArgs& a, const Share& share) {
  switch (a.weight_dtype) {
    case DType::kF32: return linear<F32Weight>(a, share);
    case DType::kBF16: return linear<Bf16Weight>(a, share);
    case DType::kF16: return linear<F16Weight>(a, share);
    case DType::kQ8_0: return linear<Q8Weight>(a, share);
    case DType::kQ4_0: return linear<Q4Weight>(a, share);
  }
}

int64_t LinearScratch(int64_t in, DType) { return panel_outputs(in) * round_up(in); }

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
