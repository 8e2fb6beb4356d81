// Public operations along time: selective scan, SSD, causal convolution. Tiles of tokens are packed, computed with the
// carried state, and unpacked.
#include <algorithm>

#include "api/error.h"
#include "api/gpu_call.h"
#include "api/handles.h"
#include "api/tiles.h"
#include "api/validate.h"

namespace m4j {
namespace {

// State of one sequence between the caller's layout, seen as rows, and a packed buffer.
void load_state(const m4j_tensor& t, const MatrixView& view, int64_t batch, const FloatBuffer& state,
                const Share& share) {
  MatrixView entry = view;
  if (t.data == nullptr) {
    int64_t begin, end;
    share.range(state.size(), 1, &begin, &end);
    std::fill(state.data() + begin, state.data() + end, 0.0f);
  } else {
    entry.data += batch * t.strides[0];
    pack(entry, 0, entry.rows, state.data(), share);
  }
}

void store_state(const m4j_tensor& t, const MatrixView& view, int64_t batch, const FloatBuffer& state,
                 const Share& share) {
  if (t.data == nullptr) return;
  MatrixView entry = view;
  entry.data += batch * t.strides[0];
  unpack(state.data(), entry, 0, entry.rows, share);
}

// out and last_state against everything else.
void check_outputs(Tensor out, Tensor last, Tensor initial, std::initializer_list<Tensor> inputs) {
  check_distinct_elements(out);
  if (last.t.data != nullptr) check_distinct_elements(last);
  for (const Tensor& input : inputs) {
    check_disjoint(out, input);
    check_disjoint(last, input);
  }
  check_disjoint(out, initial);
  check_disjoint(out, last);
  if (initial.t.data != nullptr) check_same_or_disjoint(last, initial);
}

void selective_scan(Engine& engine, const m4j_selective_scan_args& a) {
  require_reserved_zero(a.reserved, "args");
  check_flag(a.delta_softplus, "args.delta_softplus");
  const Tensor u{"args.u", a.u}, delta{"args.delta", a.delta}, A{"args.A", a.A}, B{"args.B", a.B}, C{"args.C", a.C},
      D{"args.D", a.D}, z{"args.z", a.z}, delta_bias{"args.delta_bias", a.delta_bias},
      initial{"args.initial_state", a.initial_state}, out{"args.out", a.out}, last{"args.last_state", a.last_state};
  const Types activations = activation_types(engine);
  check_tensor(u, {{"B", kAny}, {"E", kAny}, {"L", kAny}}, activations);
  const Dim batch{"B", a.u.shape[0]}, inner{"E", a.u.shape[1]}, length{"L", a.u.shape[2]};
  check_tensor(delta, {batch, inner, length}, activations);
  check_tensor(A, {inner, {"N", kAny}});
  const Dim states{"N", a.A.shape[1]};
  check_tensor(B, {batch, {"G", kAny}, states, length}, activations);
  const Dim groups{"G", a.B.shape[1]};
  if (inner.size % groups.size != 0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.B: has %lld groups, expected a divisor of E = %lld",
         static_cast<long long>(groups.size), static_cast<long long>(inner.size));
  }
  check_tensor(C, {batch, groups, states, length}, activations);
  check_tensor(D, {inner}, Types::kF32, Presence::kOptional);
  check_tensor(z, {batch, inner, length}, activations, Presence::kOptional);
  check_tensor(delta_bias, {inner}, Types::kF32, Presence::kOptional);
  check_tensor(initial, {batch, inner, states}, Types::kF32, Presence::kOptional);
  check_tensor(out, {batch, inner, length}, activations);
  check_tensor(last, {batch, inner, states}, Types::kF32, Presence::kOptional);
  for (const Tensor& t : {delta, B, C, z, out}) check_same_type(t, u);
  check_outputs(out, last, initial, {u, delta, A, B, C, D, z, delta_bias});
  if (engine.gpu != nullptr) return call_gpu(engine, engine.gpu->api.selective_scan, a);

  const int64_t tile = std::min(length.size, kTileTokens);
  const auto along_time = [&](const m4j_tensor& t) { return TiledOperand(t, 2, kNoDim, 1, tile); };  // [L, E]
  const TiledOperand u_rows = along_time(a.u), delta_rows = along_time(a.delta), z_rows = along_time(a.z),
                     out_rows = along_time(a.out);
  using Packing = TiledOperand::Packing;  // B and C share a row stride
  const TiledOperand B_rows(a.B, 3, 1, 2, tile, Packing::kAlways), C_rows(a.C, 3, 1, 2, tile, Packing::kAlways);
  const FloatBuffer packed_A = packed_matrix(a.A, 1, 0);  // [N, E]
  const FloatBuffer packed_D = packed_vector(a.D), packed_bias = packed_vector(a.delta_bias);
  const FloatBuffer state(checked_mul(states.size, inner.size));  // [N, E]
  const MatrixView initial_view = matrix_view(a.initial_state, 2, kNoDim, 1);
  const MatrixView last_view = matrix_view(a.last_state, 2, kNoDim, 1);

  Engine::Turn turn(engine);
  turn.reserve(0, 0);
  turn.run([&](const Share& share) {
    for (int64_t b = 0; b < batch.size; ++b) {
      load_state(a.initial_state, initial_view, b, state, share);
      for (int64_t t = 0; t < length.size; t += tile) {
        const int64_t count = std::min(tile, length.size - t);
        const Rows u_tile = u_rows.load(b, t, count, share), delta_tile = delta_rows.load(b, t, count, share),
                   z_tile = z_rows.load(b, t, count, share), B_tile = B_rows.load(b, t, count, share),
                   C_tile = C_rows.load(b, t, count, share), out_tile = out_rows.target(b, t);
        turn.barrier();
        engine.ops.selective_scan({.u = u_tile.data,
                                   .ld_u = u_tile.ld,
                                   .delta = delta_tile.data,
                                   .ld_delta = delta_tile.ld,
                                   .A = packed_A.data(),
                                   .B = B_tile.data,
                                   .C = C_tile.data,
                                   .ld_bc = B_tile.ld,
                                   .D = packed_D.data(),
                                   .z = z_tile.data,
                                   .ld_z = z_tile.ld,
                                   .delta_bias = packed_bias.data(),
                                   .delta_softplus = a.delta_softplus != 0,
                                   .tokens = count,
                                   .d_inner = inner.size,
                                   .d_state = states.size,
                                   .n_groups = groups.size,
                                   .state = state.data(),
                                   .out = out_tile.data,
                                   .ld_out = out_tile.ld},
                                  share);
        turn.barrier();
        out_rows.store(b, t, count, share);
      }
      store_state(a.last_state, last_view, b, state, share);
      turn.barrier();
    }
  });
}

void ssd(Engine& engine, const m4j_ssd_args& a) {
  constexpr int64_t kMaxChunkSize = 4096;
  require_reserved_zero(a.reserved, "args");
  check_flag(a.dt_softplus, "args.dt_softplus");
  if (a.chunk_size < 1 || a.chunk_size > kMaxChunkSize) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.chunk_size: is %lld, expected 1 ... %lld",
         static_cast<long long>(a.chunk_size), static_cast<long long>(kMaxChunkSize));
  }
  if (!(a.dt_min <= a.dt_max)) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.dt_min, dt_max: are %g, %g, expected dt_min <= dt_max", double{a.dt_min},
         double{a.dt_max});
  }
  const Tensor x{"args.x", a.x}, dt{"args.dt", a.dt}, A{"args.A", a.A}, B{"args.B", a.B}, C{"args.C", a.C},
      D{"args.D", a.D}, dt_bias{"args.dt_bias", a.dt_bias}, initial{"args.initial_state", a.initial_state},
      out{"args.out", a.out}, last{"args.last_state", a.last_state};
  const Types activations = activation_types(engine);
  check_tensor(x, {{"B", kAny}, {"L", kAny}, {"H", kAny}, {"P", kAny}}, activations);
  const Dim batch{"B", a.x.shape[0]}, length{"L", a.x.shape[1]}, heads{"H", a.x.shape[2]}, headdim{"P", a.x.shape[3]};
  check_tensor(dt, {batch, length, heads}, activations);
  check_tensor(A, {heads});
  check_tensor(B, {batch, length, {"G", kAny}, {"N", kAny}}, activations);
  const Dim groups{"G", a.B.shape[2]}, states{"N", a.B.shape[3]};
  if (heads.size % groups.size != 0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.B: has %lld groups, expected a divisor of H = %lld",
         static_cast<long long>(groups.size), static_cast<long long>(heads.size));
  }
  check_tensor(C, {batch, length, groups, states}, activations);
  check_tensor(D, {heads}, Types::kF32, Presence::kOptional);
  check_tensor(dt_bias, {heads}, Types::kF32, Presence::kOptional);
  check_tensor(initial, {batch, heads, headdim, states}, Types::kF32, Presence::kOptional);
  check_tensor(out, {batch, length, heads, headdim}, activations);
  check_tensor(last, {batch, heads, headdim, states}, Types::kF32, Presence::kOptional);
  for (const Tensor& t : {dt, B, C, out}) check_same_type(t, x);
  check_outputs(out, last, initial, {x, dt, A, B, C, D, dt_bias});
  if (engine.gpu != nullptr) return call_gpu(engine, engine.gpu->api.ssd, a);

  // Whole chunks, so that tiles do not change the result.
  const int64_t tile = std::min(length.size, std::max(kTileTokens / a.chunk_size, int64_t{1}) * a.chunk_size);
  const int64_t chunk_size = std::min(a.chunk_size, tile);
  using Packing = TiledOperand::Packing;  // B and C share a row stride
  const TiledOperand x_rows(a.x, 1, 2, 3, tile), dt_rows(a.dt, 1, kNoDim, 2, tile), out_rows(a.out, 1, 2, 3, tile),
      B_rows(a.B, 1, 2, 3, tile, Packing::kAlways), C_rows(a.C, 1, 2, 3, tile, Packing::kAlways);
  const FloatBuffer packed_A = packed_vector(a.A), packed_D = packed_vector(a.D),
                    packed_bias = packed_vector(a.dt_bias);
  const FloatBuffer state(checked_mul(heads.size, checked_mul(headdim.size, states.size)));  // [H, P, N]
  const MatrixView initial_view = matrix_view(a.initial_state, 1, 2, 3);
  const MatrixView last_view = matrix_view(a.last_state, 1, 2, 3);

  Engine::Turn turn(engine);
  turn.reserve(0, engine.ops.ssd_chunk_scratch(headdim.size, states.size, chunk_size));
  turn.run([&](const Share& share) {
    for (int64_t b = 0; b < batch.size; ++b) {
      load_state(a.initial_state, initial_view, b, state, share);
      for (int64_t t = 0; t < length.size; t += tile) {
        const int64_t count = std::min(tile, length.size - t);
        const Rows x_tile = x_rows.load(b, t, count, share), dt_tile = dt_rows.load(b, t, count, share),
                   B_tile = B_rows.load(b, t, count, share), C_tile = C_rows.load(b, t, count, share),
                   out_tile = out_rows.target(b, t);
        turn.barrier();
        engine.ops.ssd_chunk({.x = x_tile.data,
                              .ld_x = x_tile.ld,
                              .dt = dt_tile.data,
                              .ld_dt = dt_tile.ld,
                              .A = packed_A.data(),
                              .B = B_tile.data,
                              .C = C_tile.data,
                              .ld_bc = B_tile.ld,
                              .D = packed_D.data(),
                              .dt_bias = packed_bias.data(),
                              .dt_softplus = a.dt_softplus != 0,
                              .dt_min = a.dt_min,
                              .dt_max = a.dt_max,
                              .tokens = count,
                              .heads = heads.size,
                              .headdim = headdim.size,
                              .d_state = states.size,
                              .n_groups = groups.size,
                              .chunk_size = chunk_size,
                              .state = state.data(),
                              .out = out_tile.data,
                              .ld_out = out_tile.ld},
                             share);
        turn.barrier();
        out_rows.store(b, t, count, share);
      }
      store_state(a.last_state, last_view, b, state, share);
      turn.barrier();
    }
  });
}

void causal_conv1d(Engine& engine, const m4j_causal_conv1d_args& a) {
  require_reserved_zero(a.reserved, "args");
  check_flag(a.silu, "args.silu");
  const Tensor x{"args.x", a.x}, weight{"args.weight", a.weight}, bias{"args.bias", a.bias},
      initial{"args.initial_window", a.initial_window}, out{"args.out", a.out}, last{"args.last_window", a.last_window};
  const Types activations = activation_types(engine);
  check_tensor(x, {{"B", kAny}, {"L", kAny}, {"C", kAny}}, activations);
  const Dim batch{"B", a.x.shape[0]}, length{"L", a.x.shape[1]}, channels{"C", a.x.shape[2]};
  check_tensor(weight, {channels, {"K", kAny}});
  const int64_t d_conv = a.weight.shape[1];
  const Dim past{"K-1", d_conv - 1};
  check_tensor(bias, {channels}, Types::kF32, Presence::kOptional);
  check_tensor(initial, {batch, channels, past}, Types::kF32, Presence::kOptional);
  check_tensor(out, {batch, length, channels}, activations);
  check_tensor(last, {batch, channels, past}, Types::kF32, Presence::kOptional);
  check_same_type(out, x);
  check_outputs(out, last, initial, {x, weight, bias});
  if (engine.gpu != nullptr) return call_gpu(engine, engine.gpu->api.causal_conv1d, a);

  const int64_t tile = std::min(length.size, kTileTokens);
  const TiledOperand x_rows(a.x, 1, kNoDim, 2, tile), out_rows(a.out, 1, kNoDim, 2, tile);
  const FloatBuffer packed_weight = packed_matrix(a.weight, 1, 0);  // [K, C]
  const FloatBuffer packed_bias = packed_vector(a.bias);
  const FloatBuffer window(checked_mul(past.size, channels.size));  // [K-1, C]
  const MatrixView initial_view = matrix_view(a.initial_window, 2, kNoDim, 1);
  const MatrixView last_view = matrix_view(a.last_window, 2, kNoDim, 1);

  Engine::Turn turn(engine);
  turn.reserve(0, 0);
  turn.run([&](const Share& share) {
    for (int64_t b = 0; b < batch.size; ++b) {
      load_state(a.initial_window, initial_view, b, window, share);
      for (int64_t t = 0; t < length.size; t += tile) {
        const int64_t count = std::min(tile, length.size - t);
        const Rows x_tile = x_rows.load(b, t, count, share), out_tile = out_rows.target(b, t);
        turn.barrier();
        engine.ops.conv1d({.x = x_tile.data,
                           .ld_x = x_tile.ld,
                           .weight = packed_weight.data(),
                           .bias = packed_bias.data(),
                           .window = window.data(),
                           .tokens = count,
                           .channels = channels.size,
                           .d_conv = d_conv,
                           .silu = a.silu != 0,
                           .out = out_tile.data,
                           .ld_out = out_tile.ld},
                          share);
        turn.barrier();
        out_rows.store(b, t, count, share);
      }
      store_state(a.last_window, last_view, b, window, share);
      turn.barrier();
    }
  });
}

}  // namespace
}  // namespace m4j

m4j_status m4j_selective_scan(m4j_engine* engine, const m4j_selective_scan_args* args, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] { selective_scan(*require(engine, "engine")->impl, require_args(args, "args")); });
}

m4j_status m4j_ssd(m4j_engine* engine, const m4j_ssd_args* args, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] { ssd(*require(engine, "engine")->impl, require_args(args, "args")); });
}

m4j_status m4j_causal_conv1d(m4j_engine* engine, const m4j_causal_conv1d_args* args, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] { causal_conv1d(*require(engine, "engine")->impl, require_args(args, "args")); });
}
