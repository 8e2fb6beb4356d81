// Copies of tensors with any strides, from one float type to another.
#include <algorithm>

#include "api/error.h"
#include "api/gpu_call.h"
#include "api/handles.h"
#include "ops/half.h"
#include "ops/tensor.h"

namespace m4j {
namespace {

void check_shape(Tensor tensor, const m4j_tensor& like) {
  const auto* s = like.shape;
  switch (like.rank) {
    case 1: check_tensor(tensor, {{"d0", s[0]}}, Types::kAnyFloat); break;
    case 2: check_tensor(tensor, {{"d0", s[0]}, {"d1", s[1]}}, Types::kAnyFloat); break;
    case 3: check_tensor(tensor, {{"d0", s[0]}, {"d1", s[1]}, {"d2", s[2]}}, Types::kAnyFloat); break;
    default: check_tensor(tensor, {{"d0", s[0]}, {"d1", s[1]}, {"d2", s[2]}, {"d3", s[3]}}, Types::kAnyFloat); break;
  }
}

void store(void* data, DType dtype, int64_t i, float value) {
  switch (dtype) {
    case DType::kF16: static_cast<uint16_t*>(data)[i] = f32_to_f16(value); break;
    case DType::kBF16: static_cast<uint16_t*>(data)[i] = f32_to_bf16(value); break;
    default: static_cast<float*>(data)[i] = value; break;
  }
}

void copy(Engine& engine, const m4j_tensor& x_tensor, const m4j_tensor& out_tensor) {
  const Tensor x{"x", x_tensor}, out{"out", out_tensor};
  if (x.t.rank < 1 || x.t.rank > M4J_MAX_RANK) {
    fail(M4J_ERR_INVALID_ARGUMENT, "x: rank is %d, expected 1 ... %d", x.t.rank, M4J_MAX_RANK);
  }
  for (int i = 0; i < x.t.rank; ++i) {
    if (x.t.shape[i] < 1) {
      fail(M4J_ERR_INVALID_ARGUMENT, "x: dimension %d is %lld, expected at least 1", i,
           static_cast<long long>(x.t.shape[i]));
    }
  }
  check_shape(x, x.t);
  check_shape(out, x.t);
  check_distinct_elements(out);
  check_same_or_disjoint(out, x);
  if (engine.gpu != nullptr) return call_gpu(engine, engine.gpu->api.copy, x.t, out.t);

  const int last = x.t.rank - 1;
  const int64_t columns = x.t.shape[last], rows = element_count(out.t) / columns;
  Engine::Turn turn(engine);
  turn.run([&](const Share& share) {
    int64_t begin, end;
    share.range(rows, 1, &begin, &end);
    for (int64_t r = begin; r < end; ++r) {
      int64_t from = 0, to = 0;
      for (int64_t d = last - 1, rest = r; d >= 0; rest /= x.t.shape[d--]) {
        from += rest % x.t.shape[d] * x.t.strides[d];
        to += rest % x.t.shape[d] * out.t.strides[d];
      }
      for (int64_t c = 0; c < columns; ++c) {
        store(out.t.data, dtype_of(out.t), to + c * out.t.strides[last],
              load_f32(x.t.data, dtype_of(x.t), from + c * x.t.strides[last]));
      }
    }
  });
}

}  // namespace
}  // namespace m4j

m4j_status m4j_copy(m4j_engine* engine, const m4j_tensor* x, const m4j_tensor* out, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] { copy(*require(engine, "engine")->impl, *require(x, "x"), *require(out, "out")); });
}
