#include "ops/reference/reference_ops.h"

namespace m4j::reference {

void rms_norm(const RmsNormArgs& a, const Share& share) {
  const int64_t group_dim = a.dim / a.n_groups;
  int64_t begin, end;
  share.range(a.tokens * a.n_groups, 1, &begin, &end);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t t = item / a.n_groups, offset = item % a.n_groups * group_dim;
    float* x = a.x + t * a.ld_x + offset;
    float* out = a.out + t * a.ld_out + offset;
    const float* gate = a.gate ? a.gate + t * a.ld_gate + offset : nullptr;
    if (a.residual) {
      for (int64_t i = 0; i < group_dim; ++i) x[i] += a.residual[t * a.ld_residual + offset + i];
    }
    double sum = 0;
    for (int64_t i = 0; i < group_dim; ++i) {
      const double v = gate ? x[i] * silu(gate[i]) : x[i];
      sum += v * v;
    }
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(group_dim) + a.eps);
    for (int64_t i = 0; i < group_dim; ++i) {
      const double v = gate ? x[i] * silu(gate[i]) : x[i];
      out[i] = static_cast<float>(v * scale * (a.weight ? a.weight[offset + i] : 1.0f));
    }
  }
}

}  // namespace m4j::reference
