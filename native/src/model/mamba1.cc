// The Mamba-1 mixer (paper, section 3.4 and figure 3), and Falcon-Mamba's, which adds norms without weights on dt, B
// and C so that training stays stable.
#include "model/forward.h"

namespace m4j {

void mamba1_mixer(const Pass& p, int64_t layer, const Share& share) {
  const Config& c = p.model.config;
  const Layer& w = p.model.layers[static_cast<std::size_t>(layer)];
  const Activations& act = p.act;
  const int64_t tokens = p.block.tokens, outputs = p.outputs(layer), E = c.d_inner, N = c.d_state, R = c.dt_rank;
  const int64_t xz_ld = 2 * E, dbc_ld = c.x_proj_rows();
  const float* x = act.proj;      // [T, E]
  float* z = act.proj + E;        // [outputs, E]
  float* dt = act.dbc;            // [T, R]
  float* B = act.dbc + R;         // [T, N]
  float* C = act.dbc + R + N;     // [T, N]

  const float* in_bias = w.in_proj_bias.data();
  if (outputs == tokens) {
    project(p, tokens, act.h, c.d_model, w.in_proj, in_bias, act.proj, xz_ld, share);
  } else {
    gather_last(p, outputs, act.h, c.d_model, act.mix, share);
    project(p, tokens, act.h, c.d_model, w.in_proj.slice(0, E), in_bias, act.proj, xz_ld, share);
  }
  p.turn.barrier();

  if (outputs < tokens) {
    project(p, outputs, act.mix, c.d_model, w.in_proj.slice(E, E), in_bias == nullptr ? nullptr : in_bias + E, z, xz_ld,
            share);
  }
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

  project(p, tokens, act.conv, E, w.x_proj, nullptr, act.dbc, dbc_ld, share);
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
  project(p, tokens, dt, dbc_ld, w.dt_proj, nullptr, act.delta, E, share);
  p.turn.barrier();

  // Tokens [first, first + count) of a segment, gated by z unless it is null.
  const auto scan = [&](const Segment& s, int64_t first, int64_t count, const float* gate, float* out) {
    const int64_t row = s.row + first;
    p.ops.selective_scan({.u = act.conv + row * E,
                          .ld_u = E,
                          .delta = act.delta + row * E,
                          .ld_delta = E,
                          .A = w.A.data(),
                          .B = B + row * dbc_ld,
                          .C = C + row * dbc_ld,
                          .ld_bc = dbc_ld,
                          .D = w.D.data(),
                          .z = gate,
                          .ld_z = xz_ld,
                          .delta_bias = w.dt_bias.data(),
                          .delta_softplus = true,
                          .tokens = count,
                          .d_inner = E,
                          .d_state = N,
                          .n_groups = 1,
                          .state = s.ssm + layer * c.layer_ssm_state(),
                          .out = out,
                          .ld_out = E},
                         share);
  };
  for (int64_t i = 0; i < p.block.n_segments; ++i) {
    const Segment& s = p.block.segments[i];
    float* y = act.conv + s.row * E;
    if (outputs == tokens) {
      scan(s, 0, s.tokens, z + s.row * xz_ld, y);
    } else if (i >= outputs) {
      scan(s, 0, s.tokens, nullptr, y);
    } else {
      // Row i is the scan's input at an earlier token or at this one, so in a member's channels it is done with.
      scan(s, 0, s.tokens - 1, nullptr, y);
      scan(s, s.tokens - 1, 1, z + i * xz_ld, act.conv + i * E);
    }
  }
  p.turn.barrier();

  project(p, outputs, act.conv, E, w.out_proj, w.out_proj_bias.data(), act.mix, c.d_model, share);
}

}  // namespace m4j
