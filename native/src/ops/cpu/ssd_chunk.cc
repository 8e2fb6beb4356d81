// SSD in its chunked matrix form (Mamba-2 paper, section 6). Members take heads. Within a chunk of Q tokens of a head,
// with s_i the sum of dt A up to token i, h the state before the chunk and j <= i:
//   y_i = exp(s_i) h C_i + sum_j (C_i . B_j) exp(s_i - s_j) dt_j x_j + D x_i
//   h'  = exp(s_Q) h + sum_j exp(s_Q - s_j) dt_j x_j B_j^T
// All of it is small matrix products. Lanes are tokens for y and states for h, so that neither x nor the state is ever
// transposed, only C (once for all heads of a group) and y. The right side of a product lies in panels as wide as a
// tile, which stay in the first-level cache while all rows of the left side pass over them.
//
// A chunk has at most kMaxChunk tokens whatever chunk_size says: the work between chunks is the same for each token,
// the work within them grows with Q, and so does scratch memory.
#include <algorithm>
#include <cstring>

#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ssd_chunk.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/math-inl.h"
#include "ops/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kMaxChunk = 48;

// A tile of a product: kRows rows x kCols vectors, held in registers. Rows that are left over go by kFewRows, then one
// by one.
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_AVX2
constexpr int kRows = 6, kCols = 2;
#else
constexpr int kRows = 8, kCols = 3;
#endif
constexpr int kFewRows = 4;
constexpr int64_t kPanel = kCols * kLanes;

HWY_INLINE int64_t round_up_to_panels(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

template <int R, int NV>
using Tile = ArrayVec[R][NV];

// tile[r][v] += sum_k left[r, k] right[k, v], v from kFirst on, left with strides of rows and of k, right a panel.
template <int R, int NV, int kFirst = 0>
HWY_INLINE void multiply_add(Tile<R, NV>& tile, const float* HWY_RESTRICT left, int64_t row, int64_t step,
                             const float* HWY_RESTRICT right, int64_t count) {
  const VecTag d;
  for (int64_t k = 0; k < count; ++k, left += step, right += kPanel) {
    ArrayVec rv[NV];
#pragma GCC unroll 4
    for (int v = kFirst; v < NV; ++v) rv[v] = hn::LoadU(d, right + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Vec lv = hn::Set(d, left[r * row]);
#pragma GCC unroll 4
      for (int v = kFirst; v < NV; ++v) tile[r][v] = hn::MulAdd(lv, rv[v], tile[r][v]);
    }
  }
}

template <int R, int NV>
HWY_INLINE void zero(Tile<R, NV>& tile) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) tile[r][v] = hn::Zero(VecTag());
}

template <int R, int NV>
HWY_INLINE void store(const Tile<R, NV>& tile, float* out, int64_t ld_out) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) hn::StoreU(tile[r][v], VecTag(), out + r * ld_out + v * kLanes);
}

// out[c, r] = in[r, c]. Rows of the output are written as a whole, four at a time: they may lie a multiple of the page
// size apart, where the first-level cache holds few of them.
void transpose(const float* in, int64_t ld_in, int64_t rows, int64_t cols, float* out, int64_t ld_out) {
  const hn::FixedTag<float, 4> d;
  const hn::RepartitionToWide<decltype(d)> dw;
  int64_t c = 0;
  for (; c + 4 <= cols; c += 4) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      const float* p = in + r * ld_in + c;
      const auto v0 = hn::LoadU(d, p), v1 = hn::LoadU(d, p + ld_in);
      const auto v2 = hn::LoadU(d, p + 2 * ld_in), v3 = hn::LoadU(d, p + 3 * ld_in);
      const auto a01 = hn::BitCast(dw, hn::InterleaveLower(d, v0, v1));
      const auto b01 = hn::BitCast(dw, hn::InterleaveUpper(d, v0, v1));
      const auto a23 = hn::BitCast(dw, hn::InterleaveLower(d, v2, v3));
      const auto b23 = hn::BitCast(dw, hn::InterleaveUpper(d, v2, v3));
      float* q = out + c * ld_out + r;
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dw, a01, a23)), d, q);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dw, a01, a23)), d, q + ld_out);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dw, b01, b23)), d, q + 2 * ld_out);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dw, b01, b23)), d, q + 3 * ld_out);
    }
    for (; r < rows; ++r)
      for (int64_t i = 0; i < 4; ++i) out[(c + i) * ld_out + r] = in[r * ld_in + c + i];
  }
  for (; c < cols; ++c)
    for (int64_t r = 0; r < rows; ++r) out[c * ld_out + r] = in[r * ld_in + c];
}

// Scratch of one member, and the chunk it works on: tokens [start, start + size). Rows of tokens are padded to whole
// panels (Qv), rows of states too (Nv).
struct Chunk {
  const SsdArgs& a;
  int64_t max_size, start, size;
  int64_t Qv, Nv;

  // Of a group. Panels of tokens i, but for B of states.
  float* Ct;   // [Qv / kPanel, N, kPanel]
  float* B;    // [Nv / kPanel, Q, kPanel]
  float* CBt;  // [Qv / kPanel, Q, kPanel], row j: C_i . B_j for i from the panel of j on

  // Of a head. Sums s are in base 2 and in two parts, since small differences of large sums must be exact.
  float* Mt;      // [Qv / kPanel, Q, kPanel], row j: CBt exp(s_i - s_j) dt_j, and D on the diagonal
  float* yt;      // [P, kPanel]: y of one panel
  float* s_high;  // [Qv]
  float* s_low;   // [Qv]
  float* growth;  // [Qv]: exp(s_i)
  float* dt;      // [Qv]
  float* weight;  // [Qv]: exp(s_Q - s_j) dt_j
  float* x;       // [Q, P]; next_state makes it x_j weight_j

  Chunk(const SsdArgs& args, int64_t max_tokens, float* scratch) : a(args), max_size(max_tokens), start(0), size(0) {
    Qv = round_up_to_panels(max_size);
    Nv = round_up_to_panels(a.d_state);
    Ct = scratch;
    B = Ct + a.d_state * Qv;
    CBt = B + max_size * Nv;
    Mt = CBt + max_size * Qv;
    yt = Mt + max_size * Qv;
    s_high = yt + a.headdim * kPanel;
    s_low = s_high + Qv;
    growth = s_low + Qv;
    dt = growth + Qv;
    weight = dt + Qv;
    x = weight + Qv;
  }

  int64_t padded() const { return round_up(size); }
  // Where B, CBt and Mt have column i of row j.
  int64_t at(int64_t i, int64_t j) const { return i / kPanel * kPanel * max_size + j * kPanel + i % kPanel; }
};

template <int R, int NV>
HWY_INLINE void group_tile(const Chunk& c, const float* B, int64_t i, int64_t j) {
  Tile<R, NV> tile;
  zero<R, NV>(tile);
  multiply_add<R, NV>(tile, B + j * c.a.ld_bc, c.a.ld_bc, 1, c.Ct + i * c.a.d_state, c.a.d_state);
  store<R, NV>(tile, c.CBt + c.at(i, j), kPanel);
}

template <int NV>
void group_panel(const Chunk& c, const float* B, int64_t i) {
  const int64_t past = std::min(c.size, i + NV * kLanes);
  int64_t j = 0;
  for (; j + kRows <= past; j += kRows) group_tile<kRows, NV>(c, B, i, j);
  for (; j + kFewRows <= past; j += kFewRows) group_tile<kFewRows, NV>(c, B, i, j);
  for (; j < past; ++j) group_tile<1, NV>(c, B, i, j);
}

// What the heads of group g share.
void prepare_group(const Chunk& c, int64_t g) {
  const int64_t N = c.a.d_state;
  const float* B = c.a.B + c.start * c.a.ld_bc + g * N;
  const float* C = c.a.C + c.start * c.a.ld_bc + g * N;
  const VecTag d;
  for (int64_t j = 0; j < c.size; ++j) {
    const float* from = B + j * c.a.ld_bc;
    int64_t n = 0;
    for (; n + kLanes <= N; n += kLanes) hn::StoreU(hn::LoadU(d, from + n), d, c.B + c.at(n, j));
    if (n < N) hn::StoreU(load_part(from + n, N - n), d, c.B + c.at(n, j));
  }
  for (int64_t i = 0; i < c.size; i += kPanel) {
    const int64_t width = std::min(kPanel, c.size - i);
    float* to = c.Ct + i * c.a.d_state;
    transpose(C + i * c.a.ld_bc, c.a.ld_bc, width, N, to, kPanel);
    if (width < kPanel) {
      for (int64_t n = 0; n < N; ++n)
        std::memset(to + n * kPanel + width, 0, static_cast<size_t>(kPanel - width) * sizeof(float));
    }
    if (width > 2 * kLanes) group_panel<kCols>(c, B, i);
    else if (width > kLanes) group_panel<2>(c, B, i);
    else group_panel<1>(c, B, i);
  }
}

template <class Span>
HWY_INLINE void copy_step(const float* from, float* to, Span span) {
  span.store(span.load(from), to);
}

// Rows of x lie so far apart that the first-level cache would not hold those of a chunk.
void prepare_x(const Chunk& c, int64_t h) {
  const SsdArgs& a = c.a;
  const int64_t P = a.headdim;
  for (int64_t j = 0; j < c.size; ++j) {
    const float* from = a.x + (c.start + j) * a.ld_x + h * P;
    float* to = c.x + j * P;
    int64_t p = 0;
    for (; p + kLanes <= P; p += kLanes) {
      __builtin_prefetch(from + P + p);  // of the next head
      copy_step(from + p, to + p, Whole());
    }
    if (p < P) copy_step(from + p, to + p, Rest{P - p});
  }
}

// dt, the sums and what follows from them.
void prepare_steps(const Chunk& c, int64_t h) {
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kNothing = 1e4;  // 2^-kNothing is 0 by far: larger steps would only spoil the other differences
  const VecTag d;
  const SsdArgs& a = c.a;
  const float bias = a.dt_bias == nullptr ? 0.0f : a.dt_bias[h];
  for (int64_t i = 0; i < c.size; ++i) c.dt[i] = a.dt[(c.start + i) * a.ld_dt + h] + bias;
  for (int64_t i = c.size; i < c.padded(); ++i) c.dt[i] = 0.0f;
  for (int64_t i = 0; i < c.padded(); i += kLanes) {
    Vec v = hn::LoadU(d, c.dt + i);
    if (a.dt_softplus) v = Softplus(d, v);
    hn::StoreU(Clamp(d, v, a.dt_min, a.dt_max), d, c.dt + i);
  }

  const double rate = static_cast<double>(a.A[h]) * kLog2E;
  double s = 0;
  for (int64_t i = 0; i < c.padded(); ++i) {
    if (i < c.size) s += std::clamp(static_cast<double>(c.dt[i]) * rate, -kNothing, kNothing);
    c.s_high[i] = static_cast<float>(s);
    c.s_low[i] = static_cast<float>(s - static_cast<double>(c.s_high[i]));
  }
  const Vec last_high = hn::Set(d, c.s_high[c.size - 1]);
  const Vec last_low = hn::Set(d, c.s_low[c.size - 1]);
  for (int64_t i = 0; i < c.padded(); i += kLanes) {
    const Vec high = hn::LoadU(d, c.s_high + i);
    const Vec low = hn::LoadU(d, c.s_low + i);
    const Vec left = hn::Add(hn::Sub(last_high, high), hn::Sub(last_low, low));
    hn::StoreU(Exp2(d, hn::Add(high, low)), d, c.growth + i);
    hn::StoreU(hn::Mul(Exp2(d, left), hn::LoadU(d, c.dt + i)), d, c.weight + i);
  }
}

// Mt, from the vector in which column j lies.
void prepare_mask(const Chunk& c, int64_t h) {
  const VecTag d;
  for (int64_t j = 0; j < c.size; ++j) {
    const Vec high = hn::Set(d, c.s_high[j]), low = hn::Set(d, c.s_low[j]), dt = hn::Set(d, c.dt[j]);
    const Vec first = hn::Set(d, static_cast<float>(j));
    for (int64_t i = j / kLanes * kLanes; i < c.padded(); i += kLanes) {
      const Vec s = hn::Add(hn::Sub(hn::LoadU(d, c.s_high + i), high), hn::Sub(hn::LoadU(d, c.s_low + i), low));
      const Vec v = hn::Mul(hn::LoadU(d, c.CBt + c.at(i, j)), hn::Mul(Exp2(d, s), dt));
      const auto causal = hn::Ge(hn::Iota(d, static_cast<float>(i)), first);
      hn::StoreU(hn::IfThenElseZero(causal, v), d, c.Mt + c.at(i, j));
    }
    if (c.a.D != nullptr) c.Mt[c.at(j, j)] += c.a.D[h];
  }
}

// Adds the tokens j of the chunk to the tile of the tokens from i on: vector v of it depends on none after its own.
template <int R, int NV, int kFirst = 0>
HWY_INLINE void add_tokens(const Chunk& c, Tile<R, NV>& tile, int64_t p, int64_t i) {
  const int64_t P = c.a.headdim;
  const int64_t first = kFirst == 0 ? 0 : i + kFirst * kLanes, past = std::min(c.size, i + (kFirst + 1) * kLanes);
  multiply_add<R, NV, kFirst>(tile, c.x + first * P + p, 1, P, c.Mt + c.at(i, first), past - first);
  if constexpr (kFirst + 1 < NV) add_tokens<R, NV, kFirst + 1>(c, tile, p, i);
}

template <int R, int NV>
HWY_INLINE void output_tile(const Chunk& c, const float* state, int64_t p, int64_t i) {
  const SsdArgs& a = c.a;
  const float* left = state + p * a.d_state;
  const float* right = c.Ct + i * a.d_state;
  Tile<R, NV> tile;
  zero<R, NV>(tile);
  int64_t n = 0;
  if (c.start == 0) {  // afterwards the states lie in the second-level cache
    for (; n + kLanes <= a.d_state; n += kLanes, left += kLanes, right += kLanes * kPanel) {
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) __builtin_prefetch(left + (a.headdim + r) * a.d_state, 0, 2);  // of the next head
      multiply_add<R, NV>(tile, left, a.d_state, 1, right, kLanes);
    }
  }
  multiply_add<R, NV>(tile, left, a.d_state, 1, right, a.d_state - n);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const Vec growth = hn::LoadU(VecTag(), c.growth + i + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) tile[r][v] = hn::Mul(tile[r][v], growth);
  }
  add_tokens<R, NV>(c, tile, p, i);
  store<R, NV>(tile, c.yt + p * kPanel, kPanel);
}

template <int NV>
void output_panel(const Chunk& c, const float* state, int64_t i) {
  const int64_t P = c.a.headdim;
  int64_t p = 0;
  for (; p + kRows <= P; p += kRows) output_tile<kRows, NV>(c, state, p, i);
  for (; p + kFewRows <= P; p += kFewRows) output_tile<kFewRows, NV>(c, state, p, i);
  for (; p < P; ++p) output_tile<1, NV>(c, state, p, i);
}

void outputs(const Chunk& c, int64_t h) {
  const SsdArgs& a = c.a;
  const float* state = a.state + h * a.headdim * a.d_state;
  for (int64_t i = 0; i < c.size; i += kPanel) {
    const int64_t width = std::min(kPanel, c.size - i);
    float* out = a.out + (c.start + i) * a.ld_out + h * a.headdim;
    // The lines that the transposition will write, while the products take their time.
    for (int64_t r = 0; r < width; ++r)
      for (int64_t p = 0; p < a.headdim; p += 16) __builtin_prefetch(out + r * a.ld_out + p, 1);
    if (width > 2 * kLanes) output_panel<kCols>(c, state, i);
    else if (width > kLanes) output_panel<2>(c, state, i);
    else output_panel<1>(c, state, i);
    transpose(c.yt, kPanel, a.headdim, width, out, a.ld_out);
  }
}

template <int R, int NV, class Span>
HWY_INLINE void state_tile(const Chunk& c, float* state, int64_t p, int64_t n, Span span) {
  const SsdArgs& a = c.a;
  float* to = state + p * a.d_state + n;
  const Vec decay = hn::Set(VecTag(), c.growth[c.size - 1]);
  Tile<R, NV> tile;
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) tile[r][v] = hn::Mul(decay, span.load(to + r * a.d_state + v * kLanes));
  multiply_add<R, NV>(tile, c.x + p, 1, a.headdim, c.B + c.at(n, 0), c.size);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) span.store(tile[r][v], to + r * a.d_state + v * kLanes);
}

template <int NV, class Span>
void state_panel(const Chunk& c, float* state, int64_t n, Span span) {
  const int64_t P = c.a.headdim;
  int64_t p = 0;
  for (; p + kRows <= P; p += kRows) state_tile<kRows, NV>(c, state, p, n, span);
  for (; p + kFewRows <= P; p += kFewRows) state_tile<kFewRows, NV>(c, state, p, n, span);
  for (; p < P; ++p) state_tile<1, NV>(c, state, p, n, span);
}

template <class Span>
HWY_INLINE void weigh(float* x, Vec weight, Span span) {
  span.store(hn::Mul(span.load(x), weight), x);
}

void next_state(const Chunk& c, int64_t h) {
  const int64_t P = c.a.headdim, N = c.a.d_state;
  for (int64_t j = 0; j < c.size; ++j) {
    const Vec weight = hn::Set(VecTag(), c.weight[j]);
    float* x = c.x + j * P;
    int64_t p = 0;
    for (; p + kLanes <= P; p += kLanes) weigh(x + p, weight, Whole());
    if (p < P) weigh(x + p, weight, Rest{P - p});
  }
  float* state = c.a.state + h * P * N;
  int64_t n = 0;
  for (; n + kPanel <= N; n += kPanel) state_panel<kCols>(c, state, n, Whole());
  for (; n + 2 * kLanes <= N; n += 2 * kLanes) state_panel<2>(c, state, n, Whole());
  for (; n + kLanes <= N; n += kLanes) state_panel<1>(c, state, n, Whole());
  if (n < N) state_panel<1>(c, state, n, Rest{N - n});
}

}  // namespace

int64_t SsdChunkScratch(int64_t headdim, int64_t d_state, int64_t chunk_size) {
  const int64_t Q = std::min(chunk_size, kMaxChunk), Qv = round_up_to_panels(Q);
  return d_state * Qv + Q * round_up_to_panels(d_state) + 2 * Q * Qv + headdim * kPanel + 5 * Qv + Q * headdim;
}

void SsdChunk(const SsdArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.heads, 1, &begin, &end);
  const int64_t heads_per_group = a.heads / a.n_groups;
  const int64_t max_size = std::min(a.chunk_size, kMaxChunk);
  Chunk c(a, max_size, share.scratch);
  for (; c.start < a.tokens; c.start += max_size) {
    c.size = std::min(max_size, a.tokens - c.start);
    for (int64_t h = begin; h < end; ++h) {
      if (h == begin || h % heads_per_group == 0) prepare_group(c, h / heads_per_group);
      prepare_x(c, h);
      prepare_steps(c, h);
      prepare_mask(c, h);
      outputs(c, h);
      next_state(c, h);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
