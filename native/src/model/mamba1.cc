// The Mamba-1 mixer (paper, section 3.4 and figure 3), and Falcon-Mamba's, which adds norms without weights on dt, B
// and C so that training stays stable.
#include "model/forward.h"

namespace m4j {

void mamba1_mixer(const Pass& p, int64_t layer, const Share& share) {
  const Config& c = p.model.config;
  const Layer& w = p.model.layers[static_cast<std::size_t>(layer)];
  const Activations& act = p.act;
  const int64_t tokens = p.block.tokens, E = c.d_inner, N = c.d_state, R = c.dt_rank;
  const int64_t xz_ld = 2 * E, dbc_ld = c.x_proj_rows();
  const float* x = act.proj;      // [T, E]
  const float* z = act.proj + E;  // [T, E]
  float* dt = act.dbc;            // [T, R]
  float* B = act.dbc + R;         // [T, N]
  float* C = act.dbc + R + N;     // [T, N]

  project(p, act.h, c.d_model, w.in_proj, w.in_proj_bias, act.proj, share);
  p.turn.barrier();

  for (int64_t i = 0; i < p.block.n_segments; ++i) {
    const Segment& s = p.block.segments[i];
    p.ops.conv1d({.x = x + s.row * xz_ld,
                  .ld_x = xz_ld,
                  .weight = w.conv_weight.data(),
                  .bias = w.conv_bias.data(),
                  .window = s.conv + layer * c.layer_conv_state(),
                  .tokens = s.tokens,
                  .channels = E,
                  .d_conv = c.d_conv,
                  .silu = true,
                  .out = act.conv + s.row * E,
                  .ld_out = E},
                 share);
  }
  p.turn.barrier();

  project(p, act.conv, E, w.x_proj, {}, act.dbc, share);
  p.turn.barrier();

  if (c.family == M4J_FALCON_MAMBA) {
    const auto norm_in_place = [&](float* part, int64_t dim) {
      p.ops.rms_norm({.x = part,
                      .ld_x = dbc_ld,
                      .residual = nullptr,
                      .ld_residual = 0,
                      .gate = nullptr,
                      .ld_gate = 0,
                      .weight = nullptr,
                      .eps = c.mixer_norm_eps,
                      .tokens = tokens,
                      .dim = dim,
                      .n_groups = 1,
                      .out = part,
                      .ld_out = dbc_ld},
                     share);
    };
    norm_in_place(dt, R);
    norm_in_place(B, N);
    norm_in_place(C, N);
    p.turn.barrier();
  }

  // dt_bias and softplus are the scan's.
  project(p, dt, dbc_ld, w.dt_proj, {}, act.delta, share);
  p.turn.barrier();

  for (int64_t i = 0; i < p.block.n_segments; ++i) {
    const Segment& s = p.block.segments[i];
    p.ops.selective_scan({.u = act.conv + s.row * E,
                          .ld_u = E,
                          .delta = act.delta + s.row * E,
                          .ld_delta = E,
                          .A = w.A.data(),
                          .B = B + s.row * dbc_ld,
                          .C = C + s.row * dbc_ld,
                          .ld_bc = dbc_ld,
                          .D = w.D.data(),
                          .z = z + s.row * xz_ld,
                          .ld_z = xz_ld,
                          .delta_bias = w.dt_bias.data(),
                          .delta_softplus = true,
                          .tokens = s.tokens,
                          .d_inner = E,
                          .d_state = N,
                          .n_groups = 1,
                          .state = s.ssm + layer * c.layer_ssm_state(),
                          .out = act.conv + s.row * E,
                          .ld_out = E},
                         share);
  }
  p.turn.barrier();

  project(p, act.conv, E, w.out_proj, w.out_proj_bias, act.mix, share);
}

}  // namespace m4j
