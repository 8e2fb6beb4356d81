// The chunked algorithm of "Transformers are SSMs", section 6: inside a chunk of Q tokens the output is a masked
// attention-like product, between chunks only the state is passed on.
#include <algorithm>

#include "ops/reference/reference_ops.h"

namespace m4j::reference {
namespace {

// The chunk of one head.
struct Chunk {
  const SsdArgs& a;
  int64_t head;
  int64_t start;  // its first token
  int64_t size;   // Q
  double* dt;     // [Q]
  double* cum;    // [Q], cum[i] = sum of dt[k] A for k <= i. In float64, so that a small difference of two large
                  // sums still has the precision that its exponential needs.
  double* row;    // [Q], one row of the matrix M = L o (C B^T) dt

  const float* x(int64_t i) const { return a.x + (start + i) * a.ld_x + head * a.headdim; }  // [P]
  const float* B(int64_t i) const { return a.B + bc_offset(i); }                             // [N]
  const float* C(int64_t i) const { return a.C + bc_offset(i); }                             // [N]
  float* out(int64_t i) const { return a.out + (start + i) * a.ld_out + head * a.headdim; }  // [P]
  float* state() const { return a.state + head * a.headdim * a.d_state; }                    // [P, N]

  int64_t bc_offset(int64_t i) const { return (start + i) * a.ld_bc + head / (a.heads / a.n_groups) * a.d_state; }
};

double dot(const float* v, const float* w, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(v[i]) * w[i];
  return sum;
}

void accumulate_decays(const Chunk& c) {
  double sum = 0;
  for (int64_t i = 0; i < c.size; ++i) {
    c.dt[i] = ssd_delta(c.a, c.start + i, c.head);
    sum += c.dt[i] * c.a.A[c.head];
    c.cum[i] = sum;
  }
}

// Y = M X + diag(exp(cum)) C h^T + D X, where h is the state before the chunk and L[i, j] = exp(cum[i] - cum[j]), the
// exponential of the segment sums, for j <= i.
void outputs(const Chunk& c) {
  const SsdArgs& a = c.a;
  for (int64_t i = 0; i < c.size; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      c.row[j] = std::exp(c.cum[i] - c.cum[j]) * dot(c.C(i), c.B(j), a.d_state) * c.dt[j];
    }
    const double decay = std::exp(c.cum[i]);
    for (int64_t p = 0; p < a.headdim; ++p) {
      double y = a.D ? static_cast<double>(a.D[c.head]) * c.x(i)[p] : 0.0;
      y += decay * dot(c.state() + p * a.d_state, c.C(i), a.d_state);
      for (int64_t j = 0; j <= i; ++j) y += c.row[j] * c.x(j)[p];
      c.out(i)[p] = static_cast<float>(y);
    }
  }
}

// The recurrence over chunks: h = exp(cum[Q-1]) h + S, where S = sum_j exp(cum[Q-1] - cum[j]) dt[j] x[j] B[j]^T is the
// state that the chunk alone would leave.
void next_state(const Chunk& c) {
  const SsdArgs& a = c.a;
  const double total = c.cum[c.size - 1];
  const double decay = std::exp(total);
  for (int64_t j = 0; j < c.size; ++j) c.row[j] = std::exp(total - c.cum[j]) * c.dt[j];
  for (int64_t p = 0; p < a.headdim; ++p) {
    for (int64_t n = 0; n < a.d_state; ++n) {
      double sum = 0;
      for (int64_t j = 0; j < c.size; ++j) sum += c.row[j] * c.x(j)[p] * c.B(j)[n];
      float& h = c.state()[p * a.d_state + n];
      h = static_cast<float>(decay * h + sum);
    }
  }
}

}  // namespace

int64_t ssd_chunk_scratch(int64_t, int64_t, int64_t chunk_size) {
  return 3 * chunk_size * static_cast<int64_t>(sizeof(double) / sizeof(float));
}

void ssd_chunk(const SsdArgs& a, const Share& share) {
  double* scratch = reinterpret_cast<double*>(share.scratch);
  int64_t begin, end;
  share.range(a.heads, 1, &begin, &end);
  for (int64_t h = begin; h < end; ++h) {
    for (int64_t t = 0; t < a.tokens; t += a.chunk_size) {
      const Chunk chunk = {a, h, t, std::min(a.chunk_size, a.tokens - t),
                           scratch, scratch + a.chunk_size, scratch + 2 * a.chunk_size};
      accumulate_decays(chunk);
      outputs(chunk);
      next_state(chunk);
    }
  }
}

}  // namespace m4j::reference
