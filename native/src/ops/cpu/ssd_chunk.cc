// SSD in its chunked matrix form (Mamba-2 paper, section 6). Members take heads. Within a chunk of Q tokens of a head,
// with s_i the sum of dt A up to token i, h the state before the chunk and j <= i:
//   y_i = exp(s_i) h C_i + sum_j (C_i . B_j) exp(s_i - s_j) dt_j x_j + D x_i
//   h'  = exp(s_Q) h + sum_j exp(s_Q - s_j) dt_j x_j B_j^T
// All of it is small matrix products out of the second-level cache. Lanes are tokens for y and states for h, so that
// neither x nor the state is ever transposed, only C (once for all heads of a group) and y.
//
// A chunk has at most kMaxChunk tokens whatever chunk_size says: the work between chunks is the same for each token, the
// work within them grows with Q, and so does scratch memory.
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

constexpr int64_t kMaxChunk = 64;

// A tile of a product: kRows rows x kCols vectors, held in registers.
constexpr int kRows = 4;
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_AVX2
constexpr int kCols = 2;
#else
constexpr int kCols = 4;
#endif

template <int R, int NV>
using Tile = Vec[R][NV];

// tile[r][v] += sum_k left[r, k] right[k, v], left with strides of rows and of k, right with rows of vectors.
template <int R, int NV>
HWY_INLINE void multiply_add(Tile<R, NV>& tile, const float* HWY_RESTRICT left, int64_t row, int64_t step,
                             const float* HWY_RESTRICT right, int64_t ld_right, int64_t count) {
  const VecTag d;
  for (int64_t k = 0; k < count; ++k, left += step, right += ld_right) {
    Vec rv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) rv[v] = hn::LoadU(d, right + v * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec lv = hn::Set(d, left[r * row]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) tile[r][v] = hn::MulAdd(lv, rv[v], tile[r][v]);
    }
  }
}

template <int R, int NV>
HWY_INLINE void zero(Tile<R, NV>& tile) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) tile[r][v] = hn::Zero(VecTag());
}

template <int R, int NV>
HWY_INLINE void store(const Tile<R, NV>& tile, float* out, int64_t ld_out) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) hn::StoreU(tile[r][v], VecTag(), out + r * ld_out + v * kLanes);
}

// out[c, r] = in[r, c]
void transpose(const float* in, int64_t ld_in, int64_t rows, int64_t cols, float* out, int64_t ld_out) {
  const hn::FixedTag<float, 4> d;
  const hn::RepartitionToWide<decltype(d)> dw;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const float* p = in + r * ld_in;
    int64_t c = 0;
    for (; c + 4 <= cols; c += 4) {
      const auto v0 = hn::LoadU(d, p + c), v1 = hn::LoadU(d, p + ld_in + c);
      const auto v2 = hn::LoadU(d, p + 2 * ld_in + c), v3 = hn::LoadU(d, p + 3 * ld_in + c);
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
    for (; c < cols; ++c)
      for (int64_t i = 0; i < 4; ++i) out[c * ld_out + r + i] = p[i * ld_in + c];
  }
  for (; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) out[c * ld_out + r] = in[r * ld_in + c];
}

// Scratch of one member, and the chunk it works on: tokens [start, start + size). Rows of tokens are padded to whole
// vectors (Qv), rows of states too (Nv).
struct Chunk {
  const SsdArgs& a;
  int64_t start, size;
  int64_t Qv, Nv;

  // Of a group.
  float* Ct;   // [N, Qv]
  float* B;    // [Q, Nv]
  float* CBt;  // [Q, Qv], row j: C_i . B_j for i >= j, rounded down to whole vectors

  // Of a head. Sums s are in base 2 and in two parts, since small differences of large sums must be exact.
  float* s_high;  // [Qv]
  float* s_low;   // [Qv]
  float* growth;  // [Qv]: exp(s_i)
  float* dt;      // [Qv]
  float* weight;  // [Qv]: exp(s_Q - s_j) dt_j
  float* Mt;      // [Q, Qv], row j: CBt exp(s_i - s_j) dt_j, and D on the diagonal
  float* yt;      // [P, Qv]
  float* xw;      // [Q, P]: x_j weight_j

  Chunk(const SsdArgs& args, int64_t max_size, float* scratch) : a(args), start(0), size(0) {
    Qv = round_up(max_size);
    Nv = round_up(a.d_state);
    Ct = scratch;
    B = Ct + a.d_state * Qv;
    CBt = B + max_size * Nv;
    s_high = CBt + max_size * Qv;
    s_low = s_high + Qv;
    growth = s_low + Qv;
    dt = growth + Qv;
    weight = dt + Qv;
    Mt = weight + Qv;
    yt = Mt + max_size * Qv;
    xw = yt + a.headdim * Qv;
  }

  const float* x(int64_t h) const { return a.x + start * a.ld_x + h * a.headdim; }
  int64_t padded() const { return round_up(size); }
};

template <int R, int NV>
HWY_INLINE void group_tile(const Chunk& c, int64_t j, int64_t i) {
  Tile<R, NV> tile;
  zero<R, NV>(tile);
  multiply_add<R, NV>(tile, c.B + j * c.Nv, c.Nv, 1, c.Ct + i, c.Qv, c.a.d_state);
  store<R, NV>(tile, c.CBt + j * c.Qv + i, c.Qv);
}

template <int R>
HWY_INLINE void group_rows(const Chunk& c, int64_t j) {
  int64_t i = j / kLanes * kLanes;
  for (; i + kCols * kLanes <= c.padded(); i += kCols * kLanes) group_tile<R, kCols>(c, j, i);
  for (; i < c.padded(); i += kLanes) group_tile<R, 1>(c, j, i);
}

// What the heads of group g share.
void prepare_group(const Chunk& c, int64_t g) {
  const int64_t N = c.a.d_state;
  const int64_t offset = c.start * c.a.ld_bc + g * N;
  transpose(c.a.C + offset, c.a.ld_bc, c.size, N, c.Ct, c.Qv);
  if (c.size < c.padded()) {
    for (int64_t n = 0; n < N; ++n)
      std::memset(c.Ct + n * c.Qv + c.size, 0, static_cast<size_t>(c.padded() - c.size) * sizeof(float));
  }
  for (int64_t j = 0; j < c.size; ++j) {
    std::memcpy(c.B + j * c.Nv, c.a.B + offset + j * c.a.ld_bc, static_cast<size_t>(N) * sizeof(float));
    std::memset(c.B + j * c.Nv + N, 0, static_cast<size_t>(c.Nv - N) * sizeof(float));
  }
  int64_t j = 0;
  for (; j + kRows <= c.size; j += kRows) group_rows<kRows>(c, j);
  for (; j < c.size; ++j) group_rows<1>(c, j);
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

// Mt, from the first column of the tile in which column j lies.
void prepare_mask(const Chunk& c, int64_t h) {
  const VecTag d;
  for (int64_t j = 0; j < c.size; ++j) {
    float* m = c.Mt + j * c.Qv;
    const Vec high = hn::Set(d, c.s_high[j]), low = hn::Set(d, c.s_low[j]), dt = hn::Set(d, c.dt[j]);
    const Vec first = hn::Set(d, static_cast<float>(j));
    int64_t i = j / (kCols * kLanes) * (kCols * kLanes);
    for (; i + kLanes <= j; i += kLanes) hn::StoreU(hn::Zero(d), d, m + i);
    for (; i < c.padded(); i += kLanes) {
      const Vec s = hn::Add(hn::Sub(hn::LoadU(d, c.s_high + i), high), hn::Sub(hn::LoadU(d, c.s_low + i), low));
      const Vec v = hn::Mul(hn::LoadU(d, c.CBt + j * c.Qv + i), hn::Mul(Exp2(d, s), dt));
      const auto causal = hn::Ge(hn::Iota(d, static_cast<float>(i)), first);
      hn::StoreU(hn::IfThenElseZero(causal, v), d, m + i);
    }
    if (c.a.D != nullptr) m[j] += c.a.D[h];
  }
}

template <int R, int NV>
HWY_INLINE void output_tile(const Chunk& c, int64_t h, int64_t p, int64_t i) {
  const SsdArgs& a = c.a;
  Tile<R, NV> tile;
  zero<R, NV>(tile);
  multiply_add<R, NV>(tile, a.state + (h * a.headdim + p) * a.d_state, a.d_state, 1, c.Ct + i, c.Qv, a.d_state);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const Vec growth = hn::LoadU(VecTag(), c.growth + i + v * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) tile[r][v] = hn::Mul(tile[r][v], growth);
  }
  const int64_t past = std::min(c.size, i + NV * kLanes);
  multiply_add<R, NV>(tile, c.x(h) + p, 1, a.ld_x, c.Mt + i, c.Qv, past);
  store<R, NV>(tile, c.yt + p * c.Qv + i, c.Qv);
}

template <int R>
HWY_INLINE void output_rows(const Chunk& c, int64_t h, int64_t p) {
  int64_t i = 0;
  for (; i + kCols * kLanes <= c.padded(); i += kCols * kLanes) output_tile<R, kCols>(c, h, p, i);
  for (; i < c.padded(); i += kLanes) output_tile<R, 1>(c, h, p, i);
}

void outputs(const Chunk& c, int64_t h) {
  const SsdArgs& a = c.a;
  int64_t p = 0;
  for (; p + kRows <= a.headdim; p += kRows) output_rows<kRows>(c, h, p);
  for (; p < a.headdim; ++p) output_rows<1>(c, h, p);
  transpose(c.yt, c.Qv, a.headdim, c.size, a.out + c.start * a.ld_out + h * a.headdim, a.ld_out);
}

template <class Span>
HWY_INLINE void weigh(const float* x, Vec weight, float* out, Span span) {
  span.store(hn::Mul(span.load(x), weight), out);
}

template <int R, int NV, class Span>
HWY_INLINE void state_tile(const Chunk& c, int64_t h, int64_t p, int64_t n, Span span) {
  const SsdArgs& a = c.a;
  float* state = a.state + (h * a.headdim + p) * a.d_state + n;
  const Vec decay = hn::Set(VecTag(), c.growth[c.size - 1]);
  Tile<R, NV> tile;
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) tile[r][v] = hn::Mul(decay, span.load(state + r * a.d_state + v * kLanes));
  multiply_add<R, NV>(tile, c.xw + p, 1, a.headdim, c.B + n, c.Nv, c.size);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) span.store(tile[r][v], state + r * a.d_state + v * kLanes);
}

template <int R>
HWY_INLINE void state_rows(const Chunk& c, int64_t h, int64_t p) {
  const int64_t N = c.a.d_state;
  int64_t n = 0;
  for (; n + kCols * kLanes <= N; n += kCols * kLanes) state_tile<R, kCols>(c, h, p, n, Whole());
  for (; n + kLanes <= N; n += kLanes) state_tile<R, 1>(c, h, p, n, Whole());
  if (n < N) state_tile<R, 1>(c, h, p, n, Rest{N - n});
}

void next_state(const Chunk& c, int64_t h) {
  const SsdArgs& a = c.a;
  const int64_t P = a.headdim;
  for (int64_t j = 0; j < c.size; ++j) {
    const Vec weight = hn::Set(VecTag(), c.weight[j]);
    const float* x = c.x(h) + j * a.ld_x;
    float* xw = c.xw + j * P;
    int64_t p = 0;
    for (; p + kLanes <= P; p += kLanes) weigh(x + p, weight, xw + p, Whole());
    if (p < P) weigh(x + p, weight, xw + p, Rest{P - p});
  }
  int64_t p = 0;
  for (; p + kRows <= P; p += kRows) state_rows<kRows>(c, h, p);
  for (; p < P; ++p) state_rows<1>(c, h, p);
}

}  // namespace

int64_t SsdChunkScratch(int64_t headdim, int64_t d_state, int64_t chunk_size) {
  const int64_t Q = std::min(chunk_size, kMaxChunk), Qv = round_up(Q);
  return d_state * Qv + Q * round_up(d_state) + 2 * Q * Qv + 5 * Qv + headdim * Qv + Q * headdim;
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
