#include "ops/reference/reference_ops.h"

namespace m4j::reference {

void ssd_step(const SsdArgs& a, const Share& share) {
  const int64_t heads_per_group = a.heads / a.n_groups;
  int64_t begin, end;
  share.range(a.heads, 1, &begin, &end);
  for (int64_t h = begin; h < end; ++h) {
    const int64_t group = h / heads_per_group;
    for (int64_t t = 0; t < a.tokens; ++t) {
      const float* B = a.B + t * a.ld_bc + group * a.d_state;
      const float* C = a.C + t * a.ld_bc + group * a.d_state;
      const double dt = ssd_delta(a, t, h);
      const double decay = std::exp(dt * a.A[h]);
      for (int64_t p = 0; p < a.headdim; ++p) {
        const double x = a.x[t * a.ld_x + h * a.headdim + p];
        float* state = a.state + (h * a.headdim + p) * a.d_state;
        double y = a.D ? a.D[h] * x : 0.0;
        for (int64_t n = 0; n < a.d_state; ++n) {
          state[n] = static_cast<float>(decay * state[n] + dt * x * B[n]);
          y += static_cast<double>(C[n]) * state[n];
        }
        a.out[t * a.ld_out + h * a.headdim + p] = static_cast<float>(y);
      }
    }
  }
}

}  // namespace m4j::reference
