// Public operations on rows: RMSNorm, linear, embedding, softmax.
#include <algorithm>
#include <atomic>

#include "api/error.h"
#include "api/gpu_call.h"
#include "api/handles.h"
#include "api/tiles.h"
#include "api/validate.h"
#include "ops/quantize.h"

namespace m4j {
namespace {

void rms_norm(Engine& engine, const m4j_rms_norm_args& a) {
  require_reserved_zero(a.reserved, "args");
  const Tensor x{"args.x", a.x}, gate{"args.gate", a.gate}, weight{"args.weight", a.weight}, out{"args.out", a.out};
  const Types activations = activation_types(engine);
  check_tensor(x, {{"rows", kAny}, {"D", kAny}}, activations);
  const Dim rows{"rows", a.x.shape[0]}, dim{"D", a.x.shape[1]};
  check_tensor(gate, {rows, dim}, activations, Presence::kOptional);
  check_tensor(weight, {dim}, Types::kF32, Presence::kOptional);
  check_tensor(out, {rows, dim}, activations);
  for (const Tensor& t : {gate, out}) check_same_type(t, x);
  if (a.n_groups < 1 || dim.size % a.n_groups != 0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.n_groups: is %lld, expected a divisor of D = %lld",
         static_cast<long long>(a.n_groups), static_cast<long long>(dim.size));
  }
  if (!(a.eps >= 0)) fail(M4J_ERR_INVALID_ARGUMENT, "args.eps: is %g, expected a number >= 0", double{a.eps});
  check_distinct_elements(out);
  check_same_or_disjoint(out, x);
  check_disjoint(out, gate);
  check_disjoint(out, weight);
  if (engine.gpu != nullptr) return call_gpu(engine, engine.gpu->api.rms_norm, a);

  const int64_t tile = std::min(rows.size, kTileTokens);
  const TiledOperand x_rows(a.x, 0, kNoDim, 1, tile), gate_rows(a.gate, 0, kNoDim, 1, tile),
      out_rows(a.out, 0, kNoDim, 1, tile);
  const FloatBuffer packed_weight = packed_vector(a.weight);
  Engine::Turn turn(engine);
  turn.reserve(0, 0);
  turn.run([&](const Share& share) {
    for (int64_t r = 0; r < rows.size; r += tile) {
      const int64_t count = std::min(tile, rows.size - r);
      const Rows x_tile = x_rows.load(0, r, count, share), gate_tile = gate_rows.load(0, r, count, share),
                 out_tile = out_rows.target(0, r);
      turn.barrier();
      engine.ops.rms_norm({.x = x_tile.data,
                           .ld_x = x_tile.ld,
                           .residual = nullptr,
                           .ld_residual = 0,
                           .gate = gate_tile.data,
                           .ld_gate = gate_tile.ld,
                           .weight = packed_weight.data(),
                           .eps = a.eps,
                           .tokens = count,
                           .dim = dim.size,
                           .n_groups = a.n_groups,
                           .out = out_tile.data,
                           .ld_out = out_tile.ld},
                          share);
      turn.barrier();
      out_rows.store(0, r, count, share);
    }
  });
}

void linear(Engine& engine, const m4j_linear_args& a) {
  const Tensor x{"args.x", a.x}, weight{"args.weight", a.weight}, bias{"args.bias", a.bias}, out{"args.out", a.out};
  const Types activations = activation_types(engine);
  check_tensor(x, {{"rows", kAny}, {"in", kAny}}, activations);
  const Dim rows{"rows", a.x.shape[0]}, in{"in", a.x.shape[1]};
  check_tensor(weight, {{"out", kAny}, in}, Types::kWeight);
  const Dim out_dim{"out", a.weight.shape[0]};
  check_tensor(bias, {out_dim}, Types::kF32, Presence::kOptional);
  check_tensor(out, {rows, out_dim}, activations);
  if (a.out.dtype != M4J_F32) check_same_type(out, x);
  for (const Tensor& t : {x, weight, out}) check_rows_contiguous(t);
  check_distinct_elements(out);
  for (const Tensor& input : {x, weight, bias}) check_disjoint(out, input);
  if (engine.gpu != nullptr) return call_gpu(engine, engine.gpu->api.linear, a);

  const FloatBuffer packed_bias = packed_vector(a.bias);
  const DType weight_dtype = static_cast<DType>(a.weight.dtype);
  const LinearArgs linear = {.x = static_cast<const float*>(a.x.data),
                             .ld_x = a.x.strides[0],
                             .weight = a.weight.data,
                             .weight_dtype = weight_dtype,
                             .ld_weight = a.weight.strides[0],
                             .bias = packed_bias.data(),
                             .tokens = rows.size,
                             .in = in.size,
                             .out_dim = out_dim.size,
                             .out = static_cast<float*>(a.out.data),
                             .ld_out = a.out.strides[0]};
  Engine::Turn turn(engine);
  turn.reserve(0, engine.ops.linear_scratch(in.size, weight_dtype));
  turn.run([&](const Share& share) { engine.ops.linear(linear, share); });
}

void embedding(Engine& engine, const m4j_tensor& table_tensor, const int32_t* ids, int64_t n_ids,
               const m4j_tensor& out_tensor) {
  const Tensor table{"table", table_tensor}, out{"out", out_tensor};
  require(ids, "ids");
  if (n_ids < 1) fail(M4J_ERR_INVALID_ARGUMENT, "n_ids: is %lld, expected at least 1", static_cast<long long>(n_ids));
  check_tensor(table, {{"V", kAny}, {"D", kAny}}, Types::kWeight);
  check_tensor(out, {{"n_ids", n_ids}, {"D", table.t.shape[1]}});
  for (const Tensor& t : {table, out}) check_rows_contiguous(t);
  check_distinct_elements(out);
  check_disjoint(out, table);
  for (int64_t i = 0; i < n_ids; ++i) {
    if (ids[i] < 0 || ids[i] >= table.t.shape[0]) {
      fail(M4J_ERR_INVALID_ARGUMENT, "ids[%lld]: is %d, expected 0 ... %lld", static_cast<long long>(i), ids[i],
           static_cast<long long>(table.t.shape[0] - 1));
    }
  }
  if (engine.gpu != nullptr) return call_gpu(engine, engine.gpu->api.embedding, table.t, ids, n_ids, out.t);

  const EmbeddingArgs args = {.table = table.t.data,
                              .table_dtype = static_cast<DType>(table.t.dtype),
                              .ids = ids,
                              .tokens = n_ids,
                              .d_model = table.t.shape[1],
                              .ld_table = table.t.strides[0],
                              .out = static_cast<float*>(out.t.data),
                              .ld_out = out.t.strides[0]};
  Engine::Turn turn(engine);
  turn.reserve(0, 0);
  turn.run([&](const Share& share) { engine.ops.embedding(args, share); });
}

void quantize_tensor(Engine& engine, const m4j_tensor& weights_tensor, const m4j_tensor& out_tensor) {
  const Tensor weights{"weights", weights_tensor}, out{"out", out_tensor};
  check_tensor(weights, {{"rows", kAny}, {"in", kAny}}, Types::kAnyFloat);
  check_contiguous(weights);
  const int64_t rows = weights.t.shape[0], in = weights.t.shape[1];
  check_tensor(out, {{"rows", rows}, {"in", in}}, Types::kWeight);
  const DType from = static_cast<DType>(weights.t.dtype), to = static_cast<DType>(out.t.dtype);
  if (!is_quantised(to)) fail(M4J_ERR_INVALID_ARGUMENT, "out: dtype is %d, expected Q8_0 or Q4_0", out.t.dtype);
  check_disjoint(out, weights);
  std::atomic<bool> finite = true;
  Engine::Turn turn(engine);
  turn.run([&](const Share& share) {
    int64_t begin, end;
    share.range(rows, 1, &begin, &end);
    if (!quantize(static_cast<const uint8_t*>(weights.t.data) + dtype_bytes(from, begin * in), from, (end - begin) * in,
                  to, static_cast<uint8_t*>(out.t.data) + dtype_bytes(to, begin * in))) {
      finite = false;
    }
  });
  if (!finite) {
    fail(M4J_ERR_INVALID_ARGUMENT, "weights: a NaN or a magnitude above %g, which cannot be quantised",
         double{kMaxQuantisable});
  }
}

void softmax(Engine& engine, bool log, const m4j_tensor& x_tensor, const m4j_tensor& out_tensor) {
  const Tensor x{"x", x_tensor}, out{"out", out_tensor};
  check_tensor(x, {{"rows", kAny}, {"n", kAny}}, activation_types(engine));
  const Dim rows{"rows", x.t.shape[0]}, n{"n", x.t.shape[1]};
  check_tensor(out, {rows, n});
  check_distinct_elements(out);
  check_same_or_disjoint(out, x);
  if (engine.gpu != nullptr) return call_gpu(engine, engine.gpu->api.softmax, x.t, out.t, log);

  const auto op = log ? engine.ops.log_softmax : engine.ops.softmax;
  const int64_t tile = std::min(rows.size, kTileTokens);
  const TiledOperand x_rows(x.t, 0, kNoDim, 1, tile), out_rows(out.t, 0, kNoDim, 1, tile);
  Engine::Turn turn(engine);
  turn.reserve(0, 0);
  turn.run([&](const Share& share) {
    for (int64_t r = 0; r < rows.size; r += tile) {
      const int64_t count = std::min(tile, rows.size - r);
      const Rows x_tile = x_rows.load(0, r, count, share), out_tile = out_rows.target(0, r);
      turn.barrier();
      op({.x = x_tile.data,
          .ld_x = x_tile.ld,
          .tokens = count,
          .n = n.size,
          .out = out_tile.data,
          .ld_out = out_tile.ld},
         share);
      turn.barrier();
      out_rows.store(0, r, count, share);
    }
  });
}

}  // namespace
}  // namespace m4j

m4j_status m4j_rms_norm(m4j_engine* engine, const m4j_rms_norm_args* args, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] { rms_norm(*require(engine, "engine")->impl, require_args(args, "args")); });
}

m4j_status m4j_linear(m4j_engine* engine, const m4j_linear_args* args, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] { linear(*require(engine, "engine")->impl, require_args(args, "args")); });
}

m4j_status m4j_embedding(m4j_engine* engine, const m4j_tensor* table, const int32_t* ids, int64_t n_ids,
                         const m4j_tensor* out, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    embedding(*require(engine, "engine")->impl, *require(table, "table"), ids, n_ids, *require(out, "out"));
  });
}

m4j_status m4j_quantize(m4j_engine* engine, const m4j_tensor* weights, const m4j_tensor* out, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    quantize_tensor(*require(engine, "engine")->impl, *require(weights, "weights"), *require(out, "out"));
  });
}

m4j_status m4j_softmax(m4j_engine* engine, const m4j_tensor* x, const m4j_tensor* out, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    softmax(*require(engine, "engine")->impl, false, *require(x, "x"), *require(out, "out"));
  });
}

m4j_status m4j_log_softmax(m4j_engine* engine, const m4j_tensor* x, const m4j_tensor* out, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    softmax(*require(engine, "engine")->impl, true, *require(x, "x"), *require(out, "out"));
  });
}
