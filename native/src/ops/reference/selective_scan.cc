#include "ops/reference/reference_ops.h"

namespace m4j::reference {

void selective_scan(const SelectiveScanArgs& a, const Share& share) {
  const int64_t channels_per_group = a.d_inner / a.n_groups;
  int64_t begin, end;
  share.range(a.d_inner, 1, &begin, &end);
  for (int64_t e = begin; e < end; ++e) {
    const int64_t group = e / channels_per_group;
    for (int64_t t = 0; t < a.tokens; ++t) {
      const double u = a.u[t * a.ld_u + e];
      const float* B = a.B + t * a.ld_bc + group * a.d_state;
      const float* C = a.C + t * a.ld_bc + group * a.d_state;
      double delta = a.delta[t * a.ld_delta + e];
      if (a.delta_bias) delta += a.delta_bias[e];
      if (a.delta_softplus) delta = softplus(delta);
      double y = a.D ? a.D[e] * u : 0.0;
      for (int64_t n = 0; n < a.d_state; ++n) {
        float& h = a.state[n * a.d_inner + e];
        h = static_cast<float>(std::exp(delta * a.A[n * a.d_inner + e]) * h + delta * B[n] * u);
        y += static_cast<double>(C[n]) * h;
      }
      if (a.z) y *= silu(a.z[t * a.ld_z + e]);
      a.out[t * a.ld_out + e] = static_cast<float>(y);
    }
  }
}

}  // namespace m4j::reference
