// Scalar code for every op, in the order of the formulas of ops.h: sums in float64, activations and states rounded to
// float32 where they are stored. The oracle for the other backends, and a backend itself.
#pragma once

#include <cmath>

#include "ops/ops.h"

namespace m4j::reference {

void embedding(const EmbeddingArgs& a, const Share& share);
void rms_norm(const RmsNormArgs& a, const Share& share);
void linear(const LinearArgs& a, const Share& share);
void conv1d(const Conv1dArgs& a, const Share& share);
void selective_scan(const SelectiveScanArgs& a, const Share& share);
void ssd_step(const SsdArgs& a, const Share& share);
void ssd_chunk(const SsdArgs& a, const Share& share);
void softmax(const SoftmaxArgs& a, const Share& share);
void log_softmax(const SoftmaxArgs& a, const Share& share);
void sample(const SampleArgs& a, const Share& share);

int64_t ssd_chunk_scratch(int64_t headdim, int64_t d_state, int64_t chunk_size);
int64_t sample_scratch(int64_t vocab_size);

inline double silu(double x) { return x / (1.0 + std::exp(-x)); }

// log(1 + e^x), without overflow for large x and without loss for very negative x.
inline double softplus(double x) { return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

// Step size of head h at token t: clamp(softplus(dt + dt_bias)).
inline double ssd_delta(const SsdArgs& a, int64_t t, int64_t h) {
  double dt = a.dt[t * a.ld_dt + h];
  if (a.dt_bias) dt += a.dt_bias[h];
  if (a.dt_softplus) dt = softplus(dt);
  return dt < a.dt_min ? a.dt_min : dt > a.dt_max ? a.dt_max : dt;  // NaN stays
}

}  // namespace m4j::reference
