#include "cuda/forward.h"

#include <algorithm>

#include "ops/cuda/dt_scan_step.h"

namespace m4j::cuda {
namespace {

// Logits are computed and handed over so many rows at a time.
constexpr int64_t kLogitRows = 256;

// One walk over all buffers measures (workspace null) and carves.
int64_t layout(const Model& m, const Segments& bound, char* workspace, Activations* act) {
  const Config& c = m.config;
  const int64_t tokens = bound.tokens, element = dtype_bytes(m.dtype, 1);
  int64_t used = 0;
  const auto take = [&](auto*& buffer, int64_t bytes) {
    buffer = workspace == nullptr ? nullptr : reinterpret_cast<std::remove_reference_t<decltype(buffer)>>(workspace + used);
    used += align(bytes);
  };
  take(act->x, tokens * c.d_model * 4);
  take(act->h, tokens * c.d_model * element);
  take(act->mix, tokens * c.d_model * element);
  take(act->proj, tokens * m.proj_ld() * element);
  take(act->conv, tokens * c.conv_channels() * element);
  take(act->dbc, c.is_mamba2() ? 0 : tokens * m.dbc_ld() * element);
  take(act->y, tokens * c.d_inner * element);
  take(act->squares, c.is_mamba2() ? tokens * ssd_chunk_squares(c.n_heads, c.headdim) * 4 : 0);
  take(act->scales, c.is_mamba2() ? tokens * 4 : 0);
  const int64_t last = std::min(bound.count, tokens);
  take(act->x_last, last * c.d_model * 4);
  act->logit_rows = std::min(tokens, kLogitRows);
  take(act->logits, act->logit_rows * c.vocab_size * 4);

  int64_t op = c.is_mamba2() ? ssd_chunk_workspace(c.n_heads, c.headdim, c.d_state, c.n_groups, bound)
                             : selective_scan_workspace(c.d_inner, c.d_state, 1, bound);
  op = std::max(op, linear_workspace(m.neediest, m.dtype, tokens));
  act->op.bytes = op;
  take(act->op.data, op);
  return used;
}

// The elements of a row from `offset` on.
void* at(const Model& m, void* row, int64_t offset) { return static_cast<char*>(row) + dtype_bytes(m.dtype, offset); }

class Mixer {
 public:
  Mixer(States& states, const Batch& batch, const Activations& act)
      : states_(states), m_(states.model), c_(m_.config), batch_(batch), act_(act), stream_(m_.engine.stream) {}

  void mamba1(const Layer& w, int64_t layer) {
    const int64_t E = c_.d_inner, N = c_.d_state, R = padded(c_.dt_rank), ld = m_.proj_ld(), dbc_ld = m_.dbc_ld();
    void* B = at(m_, act_.dbc, R);
    void* C = at(m_, act_.dbc, R + N);
    project(act_.h, c_.d_model, w.in_proj, w.in_proj_bias, act_.proj);
    convolve(w, layer, act_.proj);
    project(act_.conv, E, w.x_proj, nullptr, act_.dbc);
    if (c_.family == M4J_FALCON_MAMBA) {
      norm_in_place(act_.dbc, c_.dt_rank);
      norm_in_place(B, N);
      norm_in_place(C, N);
    }
    const SelectiveScanArgs scan = {.dtype = m_.dtype,
                                    .u = act_.conv,
                                    .ld_u = E,
                                    .delta = act_.y,
                                    .ld_delta = E,
                                    .A = w.A,
                                    .B = B,
                                    .C = C,
                                    .ld_bc = dbc_ld,
                                    .D = w.D,
                                    .z = at(m_, act_.proj, E),
                                    .ld_z = ld,
                                    .delta_bias = w.dt_bias,
                                    .delta_softplus = true,
                                    .segments = batch_.segments,
                                    .d_inner = E,
                                    .d_state = N,
                                    .n_groups = 1,
                                    .states = states_.ssm(layer),
                                    .slot_stride = states_.ssm_stride(),
                                    .out = act_.conv,
                                    .ld_out = E,
                                    .workspace = act_.op,
                                    .state_type = c_.ssm_type()};
    if (!dt_scan_step({scan, act_.dbc, w.dt_proj}, stream_)) {
      project(act_.dbc, dbc_ld, w.dt_proj, nullptr, act_.y);
      selective_scan(scan, stream_);
    }
    project(act_.conv, E, w.out_proj, w.out_proj_bias, act_.mix);
  }

  // Rows of act.mix are still to be scaled by what is returned, if not null.
  const float* mamba2(const Layer& w, int64_t layer) {
    const int64_t E = c_.d_inner, GN = c_.n_groups * c_.d_state, ld = m_.proj_ld(), C = c_.conv_channels();
    project(act_.h, c_.d_model, w.in_proj, w.in_proj_bias, act_.proj);
    convolve(w, layer, at(m_, act_.proj, E));
    const SsdArgs ssd = {.dtype = m_.dtype,
                         .x = act_.conv,
                         .ld_x = C,
                         .dt = at(m_, act_.proj, 2 * E + 2 * GN),
                         .ld_dt = ld,
                         .A = w.A,
                         .B = at(m_, act_.conv, E),
                         .C = at(m_, act_.conv, E + GN),
                         .ld_bc = C,
                         .D = w.D,
                         .dt_bias = w.dt_bias,
                         .dt_softplus = true,
                         .dt_min = c_.dt_min,
                         .dt_max = c_.dt_max,
                         .segments = batch_.segments,
                         .heads = c_.n_heads,
                         .headdim = c_.headdim,
                         .d_state = c_.d_state,
                         .n_groups = c_.n_groups,
                         .states = states_.ssm(layer),
                         .slot_stride = states_.ssm_stride(),
                         .out = act_.y,
                         .ld_out = E,
                         .workspace = act_.op,
                         .state_type = c_.ssm_type()};
    if (ssd_in_steps(batch_.segments.longest, c_.d_state)) {
      ssd_step(ssd, stream_);
    } else {
      // The norm of a whole row is a scale, which may follow out_proj if nothing is added there.
      SsdArgs gated = ssd;
      gated.z = act_.proj;
      gated.ld_z = ld;
      gated.norm_weight = w.mixer_norm;
      gated.squares = act_.squares;
      if (c_.n_groups == 1 && w.out_proj_bias == nullptr && ssd_chunk_gates(gated)) {
        ssd_chunk(gated, stream_);
        rms_scale({.squares = act_.squares,
                   .tokens = batch_.segments.tokens,
                   .parts = ssd_chunk_squares(c_.n_heads, c_.headdim),
                   .dim = E,
                   .eps = c_.norm_eps,
                   .out = act_.scales},
                  stream_);
        project(act_.y, E, w.out_proj, nullptr, act_.mix);
        return act_.scales;
      }
      ssd_chunk(ssd, stream_);
    }
    rms_norm({.dtype = m_.dtype,
              .x = act_.y,
              .ld_x = E,
              .residual = nullptr,
              .gate = act_.proj,
              .ld_gate = ld,
              .weight = w.mixer_norm,
              .eps = c_.norm_eps,
              .tokens = batch_.segments.tokens,
              .dim = E,
              .n_groups = c_.n_groups,
              .out = act_.y,
              .ld_out = E},
             stream_);
    project(act_.y, E, w.out_proj, w.out_proj_bias, act_.mix);
    return nullptr;
  }

 private:
  void project(const void* x, int64_t ld_x, const DeviceMatrix& weight, const float* bias, void* out) {
    linear({.dtype = m_.dtype,
            .x = x,
            .ld_x = ld_x,
            .weight = weight,
            .bias = bias,
            .tokens = batch_.segments.tokens,
            .out_dtype = m_.dtype,
            .out = out,
            .ld_out = weight.rows,
            .workspace = act_.op},
           m_.engine.gemm, stream_);
  }

  void convolve(const Layer& w, int64_t layer, const void* x) {
    conv1d({.dtype = m_.dtype,
            .x = x,
            .ld_x = m_.proj_ld(),
            .weight = w.conv_weight,
            .bias = w.conv_bias,
            .windows = states_.conv(layer),
            .slot_stride = states_.slot_stride(),
            .segments = batch_.segments,
            .channels = c_.conv_channels(),
            .d_conv = c_.d_conv,
            .silu = true,
            .out = act_.conv,
            .ld_out = c_.conv_channels()},
           stream_);
  }

  void norm_in_place(void* part, int64_t dim) {
    rms_norm({.dtype = m_.dtype,
              .x = part,
              .ld_x = m_.dbc_ld(),
              .residual = nullptr,
              .gate = nullptr,
              .ld_gate = 0,
              .weight = nullptr,
              .eps = c_.mixer_norm_eps,
              .tokens = batch_.segments.tokens,
              .dim = dim,
              .n_groups = 1,
              .out = part,
              .ld_out = m_.dbc_ld()},
             stream_);
  }

  States& states_;
  const Model& m_;
  const Config& c_;
  const Batch& batch_;
  const Activations& act_;
  const cudaStream_t stream_;
};

// residual += x, scaled, then the norm of it.
void block_norm(const Model& m, const void* x, const float* x_scale, float* residual, const float* weight,
                int64_t tokens, void* out) {
  rms_norm({.dtype = m.dtype,
            .x = x,
            .ld_x = m.config.d_model,
            .residual = residual,
            .gate = nullptr,
            .ld_gate = 0,
            .weight = weight,
            .eps = m.config.norm_eps,
            .tokens = tokens,
            .dim = m.config.d_model,
            .n_groups = 1,
            .out = out,
            .ld_out = m.config.d_model,
            .x_scale = x_scale},
           m.engine.stream);
}

}  // namespace

int64_t activation_bytes(const Model& model, const Segments& bound) {
  Activations unused;
  return layout(model, bound, nullptr, &unused);
}

Activations carve_activations(const Model& model, const Segments& bound, char* workspace) {
  Activations act;
  layout(model, bound, workspace, &act);
  return act;
}

const float* layers(States& states, const Batch& batch, const Activations& act) {
  const Model& m = states.model;
  embedding({.table = m.embedding.data,
             .table_dtype = m.embedding.dtype,
             .ld_table = m.config.d_model,
             .ids = batch.ids,
             .tokens = batch.segments.tokens,
             .d_model = m.config.d_model,
             .out = act.x,
             .ld_out = m.config.d_model},
            m.engine.stream);
  Mixer mixer(states, batch, act);
  const float* mix_scale = nullptr;
  for (int64_t layer = 0; layer < m.config.n_layer; ++layer) {
    const Layer& w = m.layers[static_cast<std::size_t>(layer)];
    block_norm(m, layer == 0 ? nullptr : act.mix, mix_scale, act.x, w.norm, batch.segments.tokens, act.h);
    if (m.config.is_mamba2()) {
      mix_scale = mixer.mamba2(w, layer);
    } else {
      mixer.mamba1(w, layer);
    }
  }
  return mix_scale;
}

int64_t logit_rows(const Batch& batch) {
  if (batch.logits_mode == M4J_LOGITS_ALL) return batch.segments.tokens;
  return batch.logits_mode == M4J_LOGITS_LAST ? batch.n_last : 0;
}

void prepare_head(const Model& m, const Batch& batch, const float* mix_scale, const Activations& act) {
  const int64_t rows = logit_rows(batch);
  if (rows == batch.segments.tokens) {  // every row, in order
    block_norm(m, act.mix, mix_scale, act.x, m.norm_f, rows, act.h);
    return;
  }
  Segments last = batch.segments;
  last.count = rows;
  gather_last({.dtype = m.dtype,
               .residual = act.x,
               .x = act.mix,
               .x_scale = mix_scale,
               .segments = last,
               .dim = m.config.d_model,
               .out = act.x_last},
              m.engine.stream);
  block_norm(m, nullptr, nullptr, act.x_last, m.norm_f, rows, act.h);
}

void head(const Model& m, int64_t begin, int64_t count, const Activations& act) {
  linear({.dtype = m.dtype,
          .x = at(m, act.h, begin * m.config.d_model),
          .ld_x = m.config.d_model,
          .weight = m.lm_head,
          .bias = nullptr,
          .tokens = count,
          .out_dtype = DType::kF32,
          .out = act.logits,
          .ld_out = m.config.vocab_size,
          .workspace = act.op},
         m.engine.gemm, m.engine.stream);
}

}  // namespace m4j::cuda
