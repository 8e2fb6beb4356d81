#include "cuda/tensor_ops.h"

#include <algorithm>

#include "cuda/forward.h"
#include "cuda/model.h"
#include "cuda/operands.h"
#include "ops/cuda/convert.h"
#include "ops/cuda/linear.h"
#include "runtime/checked.h"

namespace m4j::cuda {
namespace {

constexpr int64_t kMaxDConv = 8;
constexpr int64_t kMostBlocks = 1 << 30;  // of one launch
constexpr int64_t kLinearRows = 1 << 16;  // of one product
constexpr int64_t kVector = 16;           // bytes that the products load at once

// Two walks over `carve(Carver&)`: memory for all that an op takes.
template <typename Carve>
void carve_workspace(Engine& engine, Carve&& carve) {
  Carver measure(nullptr);
  carve(measure);
  Carver carver(engine.workspace(measure.used()));
  carve(carver);
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVector == 0; }

// The sequences of a part as segments in the slots 0, 1, ....
Segments bound_of(const Part& part) { return {nullptr, part.sequences, part.rows(), part.tokens}; }

Segments upload_segments(Engine& engine, const Part& part, Segment* to) {
  std::vector<Segment> items;
  items.reserve(static_cast<std::size_t>(part.sequences));
  for (int64_t i = 0; i < part.sequences; ++i) items.push_back({i * part.tokens, part.tokens, i});
  engine.transfers.upload(to, items.data(), part.sequences * static_cast<int64_t>(sizeof(Segment)), engine.stream);
  Segments segments = bound_of(part);
  segments.items = to;
  return segments;
}

// An op along time: runs body(part, segments) for each part between loading and storing rows and states.
template <typename Body>
void run_parts(Engine& engine, const std::vector<Part>& parts, int64_t length,
               std::initializer_list<const Rows*> inputs, const Rows& out, const Slots& states, Segment* segment_memory,
               Body&& body) {
  for (const Part& part : parts) {
    if (part.begin == 0) states.load(part, engine.stream);
    // Behind the states: kernels read those before they wait for the one ahead, and a copy lets none start early.
    const Segments segments = upload_segments(engine, part, segment_memory);
    for (const Rows* rows : inputs) rows->load(part, engine.stream);
    body(part, segments);
    out.store(part, engine.stream);
    if (part.begin + part.tokens == length) states.store(part, engine.stream);
  }
}

}  // namespace

void run(Engine& engine, const m4j_selective_scan_args& a) {
  check_memory(engine.ordinal(), {{"args.u", a.u}, {"args.delta", a.delta}, {"args.A", a.A}, {"args.B", a.B},
                                  {"args.C", a.C}, {"args.D", a.D}, {"args.z", a.z}, {"args.delta_bias", a.delta_bias},
                                  {"args.initial_state", a.initial_state}, {"args.out", a.out},
                                  {"args.last_state", a.last_state}});
  const int64_t batch = a.u.shape[0], E = a.u.shape[1], L = a.u.shape[2], N = a.A.shape[1], G = a.B.shape[1];
  if (N > kMaxDState) {
    fail(M4J_ERR_UNSUPPORTED, "args.A: %lld states, the GPU takes up to %lld", static_cast<long long>(N),
         static_cast<long long>(kMaxDState));
  }
  Rows u(a.u, 0, 2, Rows::kNone, 1), delta(a.delta, 0, 2, Rows::kNone, 1), z(a.z, 0, 2, Rows::kNone, 1),
      out(a.out, 0, 2, Rows::kNone, 1), B(a.B, 0, 3, 1, 2), C(a.C, 0, 3, 1, 2);
  if (B.packed() || C.packed() || B.ld() != C.ld()) {  // they share a row stride
    B.pack();
    C.pack();
  }
  Parameter A(a.A, {1, 0}), D(a.D, {0}), bias(a.delta_bias, {0});
  Slots states(a.initial_state, a.last_state, {0, 2, 1}, checked_mul(N, E));

  int64_t row_bytes = 0, op_bytes = 0;
  for (const Rows* rows : {&u, &delta, &z, &out, &B, &C}) row_bytes += rows->packed_row_bytes();
  const std::vector<Part> parts = cut(batch, L, row_bytes);
  for (const Part& part : parts) op_bytes = std::max(op_bytes, selective_scan_workspace(E, N, G, bound_of(part)));
  Segment* segment_memory = nullptr;
  void* op_memory = nullptr;
  carve_workspace(engine, [&](Carver& carver) {
    for (Rows* rows : {&u, &delta, &z, &out, &B, &C}) rows->take(carver, largest(parts));
    for (Parameter* p : {&A, &D, &bias}) p->take(carver);
    states.take(carver, largest(parts));
    segment_memory = carver.take<Segment>(largest(parts).sequences * static_cast<int64_t>(sizeof(Segment)));
    op_memory = carver.take<void>(op_bytes);
  });
  for (const Parameter* p : {&A, &D, &bias}) p->load(engine.stream);
  run_parts(engine, parts, L, {&u, &delta, &z, &B, &C}, out, states, segment_memory,
            [&](const Part& part, const Segments& segments) {
              selective_scan({.dtype = u.type(),
                              .u = u.at(part),
                              .ld_u = u.ld(),
                              .delta = delta.at(part),
                              .ld_delta = delta.ld(),
                              .A = A.data(),
                              .B = B.at(part),
                              .C = C.at(part),
                              .ld_bc = B.ld(),
                              .D = D.data(),
                              .z = z.at(part),
                              .ld_z = z.ld(),
                              .delta_bias = bias.data(),
                              .delta_softplus = a.delta_softplus != 0,
                              .segments = segments,
                              .d_inner = E,
                              .d_state = N,
                              .n_groups = G,
                              .states = states.data(),
                              .slot_stride = states.stride(),
                              .out = out.at(part),
                              .ld_out = out.ld(),
                              .workspace = {op_memory, op_bytes}},
                             engine.stream);
            });
}

void run(Engine& engine, const m4j_ssd_args& a) {
  check_memory(engine.ordinal(), {{"args.x", a.x}, {"args.dt", a.dt}, {"args.A", a.A}, {"args.B", a.B}, {"args.C", a.C},
                                  {"args.D", a.D}, {"args.dt_bias", a.dt_bias},
                                  {"args.initial_state", a.initial_state}, {"args.out", a.out},
                                  {"args.last_state", a.last_state}});
  const int64_t batch = a.x.shape[0], L = a.x.shape[1], H = a.x.shape[2], P = a.x.shape[3], G = a.B.shape[2],
                N = a.B.shape[3];
  Rows x(a.x, 0, 1, 2, 3), dt(a.dt, 0, 1, Rows::kNone, 2), out(a.out, 0, 1, 2, 3), B(a.B, 0, 1, 2, 3),
      C(a.C, 0, 1, 2, 3);
  if (B.packed() || C.packed() || B.ld() != C.ld()) {  // they share a row stride
    B.pack();
    C.pack();
  }
  Parameter A(a.A, {0}), D(a.D, {0}), bias(a.dt_bias, {0});
  Slots states(a.initial_state, a.last_state, {0, 1, 2, 3}, checked_mul(checked_mul(H, P), N));

  int64_t row_bytes = 0, op_bytes = 0;
  for (const Rows* rows : {&x, &dt, &out, &B, &C}) row_bytes += rows->packed_row_bytes();
  const std::vector<Part> parts = cut(batch, L, row_bytes);
  const auto in_steps = [&](const Part& part) { return ssd_in_steps(part.tokens, N); };
  for (const Part& part : parts) {
    if (!in_steps(part)) op_bytes = std::max(op_bytes, ssd_chunk_workspace(H, P, N, G, bound_of(part)));
  }
  Segment* segment_memory = nullptr;
  void* op_memory = nullptr;
  carve_workspace(engine, [&](Carver& carver) {
    for (Rows* rows : {&x, &dt, &out, &B, &C}) rows->take(carver, largest(parts));
    for (Parameter* p : {&A, &D, &bias}) p->take(carver);
    states.take(carver, largest(parts));
    segment_memory = carver.take<Segment>(largest(parts).sequences * static_cast<int64_t>(sizeof(Segment)));
    op_memory = carver.take<void>(op_bytes);
  });
  for (const Parameter* p : {&A, &D, &bias}) p->load(engine.stream);
  run_parts(engine, parts, L, {&x, &dt, &B, &C}, out, states, segment_memory,
            [&](const Part& part, const Segments& segments) {
              const SsdArgs args = {.dtype = x.type(),
                                    .x = x.at(part),
                                    .ld_x = x.ld(),
                                    .dt = dt.at(part),
                                    .ld_dt = dt.ld(),
                                    .A = A.data(),
                                    .B = B.at(part),
                                    .C = C.at(part),
                                    .ld_bc = B.ld(),
                                    .D = D.data(),
                                    .dt_bias = bias.data(),
                                    .dt_softplus = a.dt_softplus != 0,
                                    .dt_min = a.dt_min,
                                    .dt_max = a.dt_max,
                                    .segments = segments,
                                    .heads = H,
                                    .headdim = P,
                                    .d_state = N,
                                    .n_groups = G,
                                    .states = states.data(),
                                    .slot_stride = states.stride(),
                                    .out = out.at(part),
                                    .ld_out = out.ld(),
                                    .workspace = {op_memory, op_bytes}};
              in_steps(part) ? ssd_step(args, engine.stream) : ssd_chunk(args, engine.stream);
            });
}

void run(Engine& engine, const m4j_causal_conv1d_args& a) {
  check_memory(engine.ordinal(), {{"args.x", a.x}, {"args.weight", a.weight}, {"args.bias", a.bias},
                                  {"args.initial_window", a.initial_window}, {"args.out", a.out},
                                  {"args.last_window", a.last_window}});
  const int64_t batch = a.x.shape[0], L = a.x.shape[1], channels = a.x.shape[2], K = a.weight.shape[1];
  if (K > kMaxDConv) {
    fail(M4J_ERR_UNSUPPORTED, "args.weight: %lld taps, the GPU takes up to %lld", static_cast<long long>(K),
         static_cast<long long>(kMaxDConv));
  }
  const int64_t taps = std::max<int64_t>(K, 2);  // the kernel has a window: one tap gets another of weight zero
  const m4j_tensor absent{};
  Rows x(a.x, 0, 1, Rows::kNone, 2), out(a.out, 0, 1, Rows::kNone, 2);
  Parameter bias(a.bias, {0});
  Slots windows(K == 1 ? absent : a.initial_window, K == 1 ? absent : a.last_window, {0, 2, 1},
                checked_mul(taps - 1, channels));

  const std::vector<Part> parts = cut(batch, L, x.packed_row_bytes() + out.packed_row_bytes());
  Segment* segment_memory = nullptr;
  float* weight = nullptr;  // [taps, C]
  carve_workspace(engine, [&](Carver& carver) {
    for (Rows* rows : {&x, &out}) rows->take(carver, largest(parts));
    bias.take(carver);
    windows.take(carver, largest(parts));
    weight = carver.take<float>(taps * channels * 4);
    segment_memory = carver.take<Segment>(largest(parts).sequences * static_cast<int64_t>(sizeof(Segment)));
  });
  bias.load(engine.stream);
  check(cudaMemsetAsync(weight, 0, static_cast<std::size_t>(taps * channels * 4), engine.stream), "cudaMemset");
  Array taps_first = array_of(a.weight, {1, 0}), packed = taps_first;
  packed.data = weight + (taps - K) * channels;
  packed.strides[2] = channels;
  packed.strides[3] = 1;
  copy(taps_first, packed, engine.stream);
  run_parts(engine, parts, L, {&x}, out, windows, segment_memory, [&](const Part& part, const Segments& segments) {
    conv1d({.dtype = x.type(),
            .x = x.at(part),
            .ld_x = x.ld(),
            .weight = weight,
            .bias = bias.data(),
            .windows = windows.data(),
            .slot_stride = windows.stride(),
            .segments = segments,
            .channels = channels,
            .d_conv = taps,
            .silu = a.silu != 0,
            .out = out.at(part),
            .ld_out = out.ld()},
           engine.stream);
  });
}

void run(Engine& engine, const m4j_rms_norm_args& a) {
  check_memory(engine.ordinal(),
               {{"args.x", a.x}, {"args.gate", a.gate}, {"args.weight", a.weight}, {"args.out", a.out}});
  Rows x(a.x, Rows::kNone, 0, Rows::kNone, 1), gate(a.gate, Rows::kNone, 0, Rows::kNone, 1),
      out(a.out, Rows::kNone, 0, Rows::kNone, 1);
  Parameter weight(a.weight, {0});
  const std::vector<Part> parts =
      cut(1, a.x.shape[0], x.packed_row_bytes() + gate.packed_row_bytes() + out.packed_row_bytes(),
          std::max<int64_t>(kMostBlocks / a.n_groups, 1));
  carve_workspace(engine, [&](Carver& carver) {
    for (Rows* rows : {&x, &gate, &out}) rows->take(carver, largest(parts));
    weight.take(carver);
  });
  weight.load(engine.stream);
  for (const Part& part : parts) {
    for (const Rows* rows : {&x, &gate}) rows->load(part, engine.stream);
    rms_norm({.dtype = x.type(),
              .x = x.at(part),
              .ld_x = x.ld(),
              .residual = nullptr,
              .gate = gate.at(part),
              .ld_gate = gate.ld(),
              .weight = weight.data(),
              .eps = a.eps,
              .tokens = part.tokens,
              .dim = a.x.shape[1],
              .n_groups = a.n_groups,
              .out = out.at(part),
              .ld_out = out.ld()},
             engine.stream);
    out.store(part, engine.stream);
  }
}

// In the type of x where the weight has it or is quantised, else in float32, to which either is widened.
void run(Engine& engine, const m4j_linear_args& a) {
  check_memory(engine.ordinal(),
               {{"args.x", a.x}, {"args.weight", a.weight}, {"args.bias", a.bias}, {"args.out", a.out}});
  const auto x_type = static_cast<DType>(a.x.dtype), stored = static_cast<DType>(a.weight.dtype);
  const bool quantised = is_quantised(stored);
  const DType type = quantised || stored == x_type ? x_type : DType::kF32;
  const bool keeps_codes = quantised && type != DType::kF32;
  const int64_t rows = a.x.shape[0], in = a.x.shape[1], out_dim = a.weight.shape[0], columns = padded(in);

  const auto in_vectors = [&](const Rows& r, const m4j_tensor& t) {
    return is_aligned(t.data) && dtype_bytes(r.type(), r.ld()) % kVector == 0;
  };
  Rows x(a.x, Rows::kNone, 0, Rows::kNone, 1, type);
  if (columns != in || !in_vectors(x, a.x)) x.pack();
  Rows out(a.out, Rows::kNone, 0, Rows::kNone, 1, a.out.dtype == M4J_F32 ? DType::kF32 : type);
  if (!in_vectors(out, a.out)) out.pack();
  Parameter bias(a.bias, {0});
  const bool weight_in_place = stored == type && columns == in && (out_dim == 1 || a.weight.strides[0] == in) &&
                               is_aligned(a.weight.data);
  DeviceMatrix weight{.dtype = keeps_codes ? DType::kQ8_0 : type,
                      .data = a.weight.data,
                      .scales = nullptr,
                      .rows = out_dim,
                      .columns = columns};

  const std::vector<Part> parts = cut(1, rows, x.packed_row_bytes() + out.packed_row_bytes(), kLinearRows);
  int64_t op_bytes = 0;
  for (const Part& part : parts) op_bytes = std::max(op_bytes, linear_workspace(weight, type, part.tokens));
  char* packed_weight = nullptr;
  char* scales = nullptr;
  void* op_memory = nullptr;
  const int64_t weight_bytes = keeps_codes ? out_dim * columns : dtype_bytes(type, out_dim * columns);
  carve_workspace(engine, [&](Carver& carver) {
    for (Rows* r : {&x, &out}) r->take(carver, largest(parts));
    bias.take(carver);
    if (!weight_in_place) packed_weight = carver.take<char>(weight_bytes);
    if (keeps_codes) scales = carver.take<char>(out_dim * columns / kQuantBlock * 2);
    op_memory = carver.take<void>(op_bytes);
  });
  bias.load(engine.stream);
  if (quantised) {
    convert({.from = stored,
             .source = a.weight.data,
             .rows = out_dim,
             .columns = in,
             .to = weight.dtype,
             .out = packed_weight,
             .ld_out = columns,
             .scales = scales},
            engine.stream);
  } else if (!weight_in_place) {
    check(cudaMemsetAsync(packed_weight, 0, static_cast<std::size_t>(weight_bytes), engine.stream), "cudaMemset");
    const Array from = array_of(a.weight, {0, 1});
    Array to = from;
    to.dtype = type;
    to.data = packed_weight;
    to.strides[2] = columns;
    to.strides[3] = 1;
    copy(from, to, engine.stream);
  }
  if (!weight_in_place) weight.data = packed_weight;
  weight.scales = scales;
  for (const Part& part : parts) {
    if (columns != in) {
      check(cudaMemsetAsync(x.at(part), 0, static_cast<std::size_t>(part.tokens * x.packed_row_bytes()), engine.stream),
            "cudaMemset");
    }
    x.load(part, engine.stream);
    linear({.dtype = type,
            .x = x.at(part),
            .ld_x = x.ld(),
            .weight = weight,
            .bias = bias.data(),
            .tokens = part.tokens,
            .out_dtype = out.type(),
            .out = out.at(part),
            .ld_out = out.ld(),
            .workspace = {op_memory, op_bytes},
            .constant_weight = weight_in_place},
           engine.gemm, engine.stream);
    out.store(part, engine.stream);
  }
}

void embedding(Engine& engine, const m4j_tensor& table, const int32_t* ids, int64_t n_ids, const m4j_tensor& out) {
  check_memory(engine.ordinal(), {{"table", table}, {"out", out}});
  constexpr int64_t kIdsAtOnce = 1 << 20;
  auto* memory = reinterpret_cast<int32_t*>(engine.workspace(std::min(n_ids, kIdsAtOnce) * 4));
  for (int64_t i = 0; i < n_ids; i += kIdsAtOnce) {
    const int64_t count = std::min(kIdsAtOnce, n_ids - i);
    engine.transfers.upload(memory, ids + i, count * 4, engine.stream);
    embedding({.table = table.data,
               .table_dtype = static_cast<DType>(table.dtype),
               .ld_table = table.strides[0],
               .ids = memory,
               .tokens = count,
               .d_model = table.shape[1],
               .out = static_cast<float*>(out.data) + i * out.strides[0],
               .ld_out = out.strides[0]},
              engine.stream);
  }
}

void softmax(Engine& engine, const m4j_tensor& x_tensor, const m4j_tensor& out_tensor, bool log) {
  check_memory(engine.ordinal(), {{"x", x_tensor}, {"out", out_tensor}});
  Rows x(x_tensor, Rows::kNone, 0, Rows::kNone, 1), out(out_tensor, Rows::kNone, 0, Rows::kNone, 1);
  if (x_tensor.data == out_tensor.data) x.pack();  // the kernel reads x twice
  const std::vector<Part> parts =
      cut(1, x_tensor.shape[0], x.packed_row_bytes() + out.packed_row_bytes(), kMostBlocks);
  carve_workspace(engine, [&](Carver& carver) {
    for (Rows* rows : {&x, &out}) rows->take(carver, largest(parts));
  });
  for (const Part& part : parts) {
    x.load(part, engine.stream);
    softmax({.dtype = x.type(),
             .x = x.at(part),
             .ld_x = x.ld(),
             .tokens = part.tokens,
             .n = x_tensor.shape[1],
             .out = static_cast<float*>(out.at(part)),
             .ld_out = out.ld(),
             .log = log},
            engine.stream);
    out.store(part, engine.stream);
  }
}

void copy(Engine& engine, const m4j_tensor& x, const m4j_tensor& out) {
  check_memory(engine.ordinal(), {{"x", x}, {"out", out}});
  const auto array = [](const m4j_tensor& t) {
    switch (t.rank) {
      case 1: return array_of(t, {0});
      case 2: return array_of(t, {0, 1});
      case 3: return array_of(t, {0, 1, 2});
      default: return array_of(t, {0, 1, 2, 3});
    }
  };
  copy(array(x), array(out), engine.stream);
}

void sample(Engine& engine, const m4j_tensor& logits, const SampleItem* items, SampleResult* results) {
  check_memory(engine.ordinal(), {{"args.logits", logits}});
  const int64_t rows = logits.shape[0], V = logits.shape[1];
  check_sample_vocab(V);
  Choices& choices = engine.choices;
  choices.reserve(rows);
  choices.fill(items, rows);
  sample({static_cast<const float*>(logits.data), logits.strides[0], V, choices.items(), rows, choices.results()},
         engine.stream);
  engine.wait();
  std::copy_n(choices.results(), rows, results);
}

void copy_bytes(Engine& engine, void* to, const void* from, int64_t bytes, int32_t direction) {
  check_side(engine.ordinal(), "to", to, direction != M4J_TO_HOST);
  check_side(engine.ordinal(), "from", from, direction != M4J_TO_DEVICE);
  switch (direction) {
    case M4J_TO_DEVICE: return engine.transfers.upload(to, from, bytes, engine.stream);
    case M4J_TO_HOST: return engine.transfers.download(to, from, bytes, engine.stream);
    default:
      check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, engine.stream),
            "copy in GPU memory");
  }
}

}  // namespace m4j::cuda
