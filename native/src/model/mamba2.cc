// The Mamba-2 mixer (paper, section 7.1): one projection gives z, x, B, C and dt; the norm comes after the gate and
// works on each group by itself.
#include "model/forward.h"

namespace m4j {

void mamba2_mixer(const Pass& p, int64_t layer, const Share& share) {
  const Config& c = p.model.config;
  const Layer& w = p.model.layers[static_cast<std::size_t>(layer)];
  const Activations& act = p.act;
  const int64_t tokens = p.block.tokens, outputs = p.outputs(layer), E = c.d_inner, GN = c.n_groups * c.d_state;
  const int64_t proj_ld = c.in_proj_rows(), xbc_ld = c.conv_channels();
  float* z = act.proj;                         // [outputs, E]
  const float* xbc = act.proj + E;             // [T, E + 2GN]
  const float* dt = act.proj + 2 * E + 2 * GN;  // [T, H]

  const float* in_bias = w.in_proj_bias.data();
  if (outputs == tokens) {
    project(p, tokens, act.h, c.d_model, w.in_proj, in_bias, act.proj, proj_ld, share);
  } else {
    gather_last(p, outputs, act.h, c.d_model, act.mix, share);
    project(p, tokens, act.h, c.d_model, w.in_proj.slice(E, proj_ld - E), in_bias == nullptr ? nullptr : in_bias + E,
            act.proj + E, proj_ld, share);
  }
  p.turn.barrier();

  if (outputs < tokens) project(p, outputs, act.mix, c.d_model, w.in_proj.slice(0, E), in_bias, z, proj_ld, share);
  for (int64_t i = 0; i < p.block.n_segments; ++i) {
    const Segment& s = p.block.segments[i];
    p.ops.conv1d({.x = xbc + s.row * proj_ld,
                  .ld_x = proj_ld,
                  .weight = w.conv_weight.data(),
                  .bias = w.conv_bias.data(),
                  .window = s.conv + layer * c.layer_conv_state(),
                  .tokens = s.tokens,
                  .channels = xbc_ld,
                  .d_conv = c.d_conv,
                  .silu = true,
                  .out = act.conv + s.row * xbc_ld,
                  .ld_out = xbc_ld},
                 share);
  }
  p.turn.barrier();

  for (int64_t i = 0; i < p.block.n_segments; ++i) {
    const Segment& s = p.block.segments[i];
    const float* x = act.conv + s.row * xbc_ld;
    const SsdArgs ssd = {.x = x,
                         .ld_x = xbc_ld,
                         .dt = dt + s.row * proj_ld,
                         .ld_dt = proj_ld,
                         .A = w.A.data(),
                         .B = x + E,
                         .C = x + E + GN,
                         .ld_bc = xbc_ld,
                         .D = w.D.data(),
                         .dt_bias = w.dt_bias.data(),
                         .dt_softplus = true,
                         .dt_min = c.dt_min,
                         .dt_max = c.dt_max,
                         .tokens = s.tokens,
                         .heads = c.n_heads,
                         .headdim = c.headdim,
                         .d_state = c.d_state,
                         .n_groups = c.n_groups,
                         .chunk_size = p.chunk_size,
                         .state = s.ssm + layer * c.layer_ssm_state(),
                         .out = act.y + s.row * E,
                         .ld_out = E};
    if (s.tokens <= kSsdStepTokens) {
      p.ops.ssd_step(ssd, share);
    } else {
      p.ops.ssd_chunk(ssd, share);
    }
  }
  p.turn.barrier();

  float* y = act.y;
  if (outputs < tokens) {
    y = act.conv;
    gather_last(p, outputs, act.y, E, y, share);
    p.turn.barrier();
  }
  p.ops.rms_norm({.x = y,
                  .ld_x = E,
                  .residual = nullptr,
                  .ld_residual = 0,
                  .gate = z,
                  .ld_gate = proj_ld,
                  .weight = w.mixer_norm.data(),
                  .eps = c.norm_eps,
                  .tokens = outputs,
                  .dim = E,
                  .n_groups = c.n_groups,
                  .out = y,
                  .ld_out = E},
                 share);
  p.turn.barrier();

  project(p, outputs, y, E, w.out_proj, w.out_proj_bias.data(), act.mix, c.d_model, share);
}

}  // namespace m4j
