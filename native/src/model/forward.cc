#include "model/forward.h"

#include <algorithm>
#include <cstring>

namespace m4j {
namespace {

// One walk over all buffers measures (workspace null) and carves.
int64_t layout(const Config& c, int64_t tokens, float* workspace, Activations* act) {
  int64_t used = 0;
  const auto take = [&](float*& buffer, int64_t columns) {
    buffer = workspace == nullptr ? nullptr : workspace + used;
    used = checked_add(used, align_floats(checked_mul(tokens, columns)));
  };
  take(act->x, c.d_model);
  take(act->h, c.d_model);
  take(act->mix, c.d_model);
  take(act->proj, c.in_proj_rows());
  take(act->conv, c.conv_channels());
  take(act->dbc, c.is_mamba2() ? 0 : c.x_proj_rows());
  take(act->delta, c.is_mamba2() ? 0 : c.d_inner);
  take(act->y, c.is_mamba2() ? c.d_inner : 0);
  return used;
}

// h[i] = x + mix of the last token of segment i, for the first `count` segments.
void gather_sums(const Pass& p, int64_t count, const Share& share) {
  const int64_t d_model = p.model.config.d_model;
  int64_t begin, end;
  share.range(count, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i) {
    const float* x = p.act.x + p.block.segments[i].last() * d_model;
    const float* mix = p.act.mix + i * d_model;
    float* h = p.act.h + i * d_model;
    for (int64_t j = 0; j < d_model; ++j) h[j] = x[j] + mix[j];
  }
}

void head(const Pass& p, const Share& share) {
  const Config& c = p.model.config;
  const int64_t rows = p.logits_rows();
  if (rows == 0) return;
  const bool all = rows == p.block.tokens;
  if (!all) {
    gather_sums(p, rows, share);
    p.turn.barrier();
  }
  p.ops.rms_norm({.x = all ? p.act.x : p.act.h,
                  .ld_x = c.d_model,
                  .residual = all ? p.act.mix : nullptr,
                  .ld_residual = c.d_model,
                  .gate = nullptr,
                  .ld_gate = 0,
                  .weight = p.model.norm_f.data(),
                  .eps = c.norm_eps,
                  .tokens = rows,
                  .dim = c.d_model,
                  .n_groups = 1,
                  .out = p.act.h,
                  .ld_out = c.d_model},
                 share);
  p.turn.barrier();
  project(p, rows, p.act.h, c.d_model, p.model.lm_head, nullptr, p.block.logits, c.vocab_size, share);
}

}  // namespace

int64_t activation_floats(const Config& config, int64_t tokens) {
  Activations unused;
  return layout(config, tokens, nullptr, &unused);
}

Activations carve_activations(const Config& config, int64_t tokens, float* workspace) {
  Activations act;
  layout(config, tokens, workspace, &act);
  return act;
}

int64_t forward_scratch_floats(const Model& model, const Ops& ops, int64_t chunk_size) {
  const Config& c = model.config;
  const int64_t chunk = chunk_size > 0 ? ops.ssd_chunk_scratch(c.headdim, c.d_state, chunk_size) : 0;
  return std::max(chunk, model.linear_scratch);
}

void project(const Pass& p, int64_t tokens, const float* x, int64_t ld_x, const Matrix& weight, const float* bias,
             float* out, int64_t ld_out, const Share& share) {
  if (tokens == 0) return;
  p.ops.linear({.x = x,
                .ld_x = ld_x,
                .weight = weight.data,
                .weight_dtype = weight.dtype,
                .ld_weight = weight.columns,
                .bias = bias,
                .tokens = tokens,
                .in = weight.columns,
                .out_dim = weight.rows,
                .out = out,
                .ld_out = ld_out,
                .activation_type = p.model.config.rounded_type()},
               share);
}

void gather_last(const Pass& p, int64_t count, const float* x, int64_t columns, float* out, const Share& share) {
  int64_t begin, end;
  share.range(count, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i) {
    std::memcpy(out + i * columns, x + p.block.segments[i].last() * columns,
                static_cast<std::size_t>(columns) * sizeof(float));
  }
}

void forward(const Pass& p, const Share& share) {
  const Config& c = p.model.config;
  p.ops.embedding({.table = p.model.embedding.data,
                   .table_dtype = p.model.embedding.dtype,
                   .ids = p.block.ids,
                   .tokens = p.block.tokens,
                   .d_model = c.d_model,
                   .ld_table = c.d_model,
                   .out = p.act.x,
                   .ld_out = c.d_model},
                  share);
  p.turn.barrier();
  for (int64_t layer = 0; layer < c.n_layer; ++layer) {
    p.ops.rms_norm({.x = p.act.x,
                    .ld_x = c.d_model,
                    .residual = layer == 0 ? nullptr : p.act.mix,
                    .ld_residual = c.d_model,
                    .gate = nullptr,
                    .ld_gate = 0,
                    .weight = p.model.layers[static_cast<std::size_t>(layer)].norm.data(),
                    .eps = c.norm_eps,
                    .tokens = p.block.tokens,
                    .dim = c.d_model,
                    .n_groups = 1,
                    .out = p.act.h,
                    .ld_out = c.d_model},
                   share);
    p.turn.barrier();
    if (c.is_mamba2()) {
      mamba2_mixer(p, layer, share);
    } else {
      mamba1_mixer(p, layer, share);
    }
    p.turn.barrier();
  }
  head(p, share);
}

}  // namespace m4j
