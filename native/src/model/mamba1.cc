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

  p.ops.linear({.x = act.h,
                .ld_x = c.d_model,
                .weight = w.in_proj.data,
                .weight_dtype = w.in_proj.dtype,
                .ld_weight = c.d_model,
                .bias = w.in_proj_bias.data(),
                .tokens = tokens,
                .in = c.d_model,
                .out_dim = xz_ld,
                .out = act.proj,
                .ld_out = xz_ld},
               share);
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

  p.ops.linear({.x = act.conv,
                .ld_x = E,
                .weight = w.x_proj.data,
                .weight_dtype = w.x_proj.dtype,
                .ld_weight = E,
                .bias = nullptr,
                .tokens = tokens,
                .in = E,
                .out_dim = dbc_ld,
                .out = act.dbc,
                .ld_out = dbc_ld},
               share);
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
  p.ops.linear({.x = dt,
                .ld_x = dbc_ld,
                .weight = w.dt_proj.data,
                .weight_dtype = w.dt_proj.dtype,
                .ld_weight = R,
                .bias = nullptr,
                .tokens = tokens,
                .in = R,
                .out_dim = E,
                .out = act.delta,
                .ld_out = E},
               share);
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

  p.ops.linear({.x = act.conv,
                .ld_x = E,
                .weight = w.out_proj.data,
                .weight_dtype = w.out_proj.dtype,
                .ld_weight = E,
                .bias = w.out_proj_bias.data(),
                .tokens = tokens,
                .in = E,
                .out_dim = c.d_model,
                .out = act.mix,
                .ld_out = c.d_model},
               share);
}

}  // namespace m4j
