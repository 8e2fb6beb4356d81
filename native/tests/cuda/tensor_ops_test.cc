// The public operations on tensors in GPU memory against the same calls on the CPU: every order of memory, every type.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "ops/half.h"
#include "support/api_test.h"
#include "support/strided.h"

namespace m4j::test {
namespace {

constexpr int32_t kDTypes[] = {M4J_F32, M4J_F16, M4J_BF16};

DType dtype_of(int32_t dtype) { return static_cast<DType>(dtype); }

float rounded(float v, int32_t dtype) {
  return dtype == M4J_F16 ? f16_to_f32(f32_to_f16(v)) : dtype == M4J_BF16 ? bf16_to_f32(f32_to_bf16(v)) : v;
}

std::vector<float> rounded(std::vector<float> values, int32_t dtype) {
  for (float& v : values) v = rounded(v, dtype);
  return values;
}

struct ReleaseBuffer {
  void operator()(m4j_buffer* b) const { m4j_buffer_release(b); }
};
using BufferPtr = std::unique_ptr<m4j_buffer, ReleaseBuffer>;

BufferPtr make_buffer(const EnginePtr& engine, int64_t bytes) {
  m4j_buffer* buffer = nullptr;
  m4j_error err{};
  EXPECT_EQ(m4j_buffer_create(engine.get(), bytes, &buffer, &err), M4J_OK) << err.message;
  return BufferPtr(buffer);
}

void copy_bytes(const EnginePtr& engine, void* to, const void* from, size_t bytes, int32_t direction) {
  m4j_error err{};
  EXPECT_EQ(m4j_copy_bytes(engine.get(), to, from, static_cast<int64_t>(bytes), direction, &err), M4J_OK)
      << err.message;
}

// A tensor laid out as a Strided one, in the memory of an engine and in any float type. Absent without a shape.
class OnDevice {
 public:
  OnDevice() : layout_() {}
  OnDevice(const EnginePtr& engine, const std::vector<int64_t>& shape, const std::vector<float>& values, Order order,
           int32_t dtype = M4J_F32)
      : engine_(&engine), layout_(shape, values, order), dtype_(dtype), element_(dtype_bytes(dtype_of(dtype), 1)) {
    const auto& storage = layout_.storage();
    std::vector<unsigned char> bytes(storage.size() * static_cast<size_t>(element_));
    for (size_t i = 0; i < storage.size(); ++i) {
      const uint16_t half = dtype == M4J_F16 ? f32_to_f16(storage[i]) : f32_to_bf16(storage[i]);
      std::memcpy(&bytes[i * static_cast<size_t>(element_)],
                  dtype == M4J_F32 ? static_cast<const void*>(&storage[i]) : &half, static_cast<size_t>(element_));
    }
    buffer_ = make_buffer(engine, static_cast<int64_t>(bytes.size()));
    copy_bytes(engine, m4j_buffer_data(buffer_.get()), bytes.data(), bytes.size(), M4J_TO_DEVICE);
  }

  m4j_tensor tensor() const {
    m4j_tensor t = layout_.tensor();
    if (t.data == nullptr) return t;
    const int64_t first = static_cast<const float*>(t.data) - layout_.storage().data();
    t.dtype = dtype_;
    t.data = static_cast<char*>(m4j_buffer_data(buffer_.get())) + first * element_;
    return t;
  }

  // Row-major; fails the test if anything but the elements was written.
  std::vector<float> values() const {
    const size_t count = layout_.storage().size();
    std::vector<unsigned char> bytes(count * static_cast<size_t>(element_));
    copy_bytes(*engine_, bytes.data(), m4j_buffer_data(buffer_.get()), bytes.size(), M4J_TO_HOST);
    const m4j_tensor& t = layout_.tensor();
    const int64_t first = static_cast<const float*>(t.data) - layout_.storage().data();
    int64_t size = 1;
    for (int d = 0; d < t.rank; ++d) size *= t.shape[d];
    std::vector<float> result;
    for (int64_t i = 0; i < size; ++i) {
      int64_t at = first, rest = i;
      for (int d = t.rank - 1; d >= 0; rest /= t.shape[d--]) at += rest % t.shape[d] * t.strides[d];
      result.push_back(load_f32(bytes.data(), dtype_of(dtype_), at));
    }
    size_t written = 0;
    for (size_t i = 0; i < count; ++i) {
      written += !std::isnan(load_f32(bytes.data(), dtype_of(dtype_), static_cast<int64_t>(i)));
    }
    EXPECT_LE(written, result.size()) << "elements of no index were written";
    return result;
  }

 private:
  const EnginePtr* engine_ = nullptr;
  Strided layout_;
  int32_t dtype_ = M4J_F32;
  int64_t element_ = 4;
  BufferPtr buffer_;
};

class CudaTensorOps : public ApiTest {
 protected:
  // run(engine, order, dtype), on the CPU in float32 with rounded inputs and on the GPU in every order and type.
  void expect_like_cpu(const std::function<std::vector<float>(const EnginePtr&, Order, int32_t, int32_t)>& run) {
    for (const int32_t dtype : kDTypes) {
      const std::vector<float> expected = run(cpu, Order::kRowMajor, dtype, M4J_F32);
      for (const Order order : kOrders) {
        SCOPED_TRACE("dtype " + std::to_string(dtype) + ", order " + std::to_string(static_cast<int>(order)));
        const std::vector<float> actual = run(gpu, order, dtype, dtype);
        ASSERT_EQ(actual.size(), expected.size());
        EXPECT_LT(relative_error(actual, {expected.begin(), expected.end()}), tolerance(dtype));
        EXPECT_EQ(run(gpu, order, dtype, dtype), actual) << "another run gives other bits";
      }
    }
  }
  static double tolerance(int32_t dtype) { return dtype == M4J_F32 ? 1e-5 : dtype == M4J_F16 ? 1e-3 : 8e-3; }

  const EnginePtr cpu = make_engine(2, "reference"), gpu = make_gpu_engine();
};

TEST_F(CudaTensorOps, SelectiveScan) {
  struct Shape {
    int64_t B, E, L, N, G;
    bool options;
  };
  for (const Shape& s : {Shape{3, 37, 70, 16, 1, true}, Shape{2, 24, 5, 7, 3, true}, Shape{1, 64, 1500, 16, 2, false},
                         Shape{5, 8, 1, 16, 1, true}}) {
    SCOPED_TRACE("L " + std::to_string(s.L));
    const auto u = random.normal(s.B * s.E * s.L), delta = random.normal(s.B * s.E * s.L),
               A = random.uniform(s.E * s.N, -4, -0.01f), B = random.normal(s.B * s.G * s.N * s.L),
               C = random.normal(s.B * s.G * s.N * s.L), D = random.normal(s.E), z = random.normal(s.B * s.E * s.L),
               bias = random.normal(s.E), state = random.normal(s.B * s.E * s.N);
    expect_like_cpu([&](const EnginePtr& engine, Order order, int32_t rounding, int32_t dtype) {
      const auto act = [&](const std::vector<int64_t>& shape, const std::vector<float>& v) {
        return OnDevice(engine, shape, rounded(v, rounding), order, dtype);
      };
      const OnDevice us = act({s.B, s.E, s.L}, u), deltas = act({s.B, s.E, s.L}, delta),
                     Bs = act({s.B, s.G, s.N, s.L}, B), Cs = act({s.B, s.G, s.N, s.L}, C),
                     out(engine, {s.B, s.E, s.L}, {}, order, dtype), As(engine, {s.E, s.N}, A, order),
                     last(engine, {s.B, s.E, s.N}, {}, order);
      OnDevice Ds, zs, biases, initial;
      if (s.options) {
        Ds = OnDevice(engine, {s.E}, D, order);
        zs = act({s.B, s.E, s.L}, z);
        biases = OnDevice(engine, {s.E}, bias, order);
        initial = OnDevice(engine, {s.B, s.E, s.N}, state, order);
      }
      const m4j_selective_scan_args args = {sizeof args, 1, 0, us.tensor(), deltas.tensor(), As.tensor(), Bs.tensor(),
                                            Cs.tensor(), Ds.tensor(), zs.tensor(), biases.tensor(), initial.tensor(),
                                            out.tensor(), last.tensor()};
      EXPECT_EQ(m4j_selective_scan(engine.get(), &args, &err), M4J_OK) << err.message;
      return joined({out.values(), last.values()});
    });
  }
}

TEST_F(CudaTensorOps, Ssd) {
  struct Shape {
    int64_t B, L, H, P, G, N;
  };
  for (const Shape& s : {Shape{2, 70, 6, 20, 3, 24}, Shape{1, 600, 4, 64, 2, 128}, Shape{3, 3, 2, 16, 1, 33},
                         Shape{1, 9, 2, 8, 1, 300}}) {
    SCOPED_TRACE("L " + std::to_string(s.L));
    const auto x = random.normal(s.B * s.L * s.H * s.P), dt = random.normal(s.B * s.L * s.H),
               A = random.uniform(s.H, -4, -0.1f), B = random.normal(s.B * s.L * s.G * s.N),
               C = random.normal(s.B * s.L * s.G * s.N), D = random.normal(s.H), bias = random.normal(s.H),
               state = random.normal(s.B * s.H * s.P * s.N);
    expect_like_cpu([&](const EnginePtr& engine, Order order, int32_t rounding, int32_t dtype) {
      const auto act = [&](const std::vector<int64_t>& shape, const std::vector<float>& v) {
        return OnDevice(engine, shape, rounded(v, rounding), order, dtype);
      };
      const OnDevice xs = act({s.B, s.L, s.H, s.P}, x), dts = act({s.B, s.L, s.H}, dt),
                     Bs = act({s.B, s.L, s.G, s.N}, B), Cs = act({s.B, s.L, s.G, s.N}, C),
                     out(engine, {s.B, s.L, s.H, s.P}, {}, order, dtype), As(engine, {s.H}, A, order),
                     Ds(engine, {s.H}, D, order), biases(engine, {s.H}, bias, order),
                     states(engine, {s.B, s.H, s.P, s.N}, state, order);
      m4j_ssd_args args = {sizeof args, 1, 0, 64, 0, INFINITY, xs.tensor(), dts.tensor(), As.tensor(), Bs.tensor(),
                           Cs.tensor(), Ds.tensor(), biases.tensor(), states.tensor(), out.tensor(), states.tensor()};
      EXPECT_EQ(m4j_ssd(engine.get(), &args, &err), M4J_OK) << err.message;
      return joined({out.values(), states.values()});  // the state was replaced where it lies
    });
  }
}

TEST_F(CudaTensorOps, CausalConv1d) {
  constexpr int64_t B = 2, L = 75, C = 21;
  for (const int64_t K : {1, 2, 4, 8}) {
    SCOPED_TRACE("K " + std::to_string(K));
    const auto x = random.normal(B * L * C), weight = random.normal(C * K), bias = random.normal(C),
               window = random.normal(B * C * (K - 1));
    expect_like_cpu([&](const EnginePtr& engine, Order order, int32_t rounding, int32_t dtype) {
      const OnDevice xs(engine, {B, L, C}, rounded(x, rounding), order, dtype), weights(engine, {C, K}, weight, order),
          biases(engine, {C}, bias, order), out(engine, {B, L, C}, {}, order, dtype);
      OnDevice initial, last;
      if (K > 1) {
        initial = OnDevice(engine, {B, C, K - 1}, window, order);
        last = OnDevice(engine, {B, C, K - 1}, {}, order);
      }
      const m4j_causal_conv1d_args args = {sizeof args, 1, 0, xs.tensor(), weights.tensor(), biases.tensor(),
                                           initial.tensor(), out.tensor(), last.tensor()};
      EXPECT_EQ(m4j_causal_conv1d(engine.get(), &args, &err), M4J_OK) << err.message;
      return K > 1 ? joined({out.values(), last.values()}) : out.values();
    });
  }
  const OnDevice x(gpu, {1, 2, 3}, random.normal(6), Order::kRowMajor),
      weight(gpu, {3, 9}, random.normal(27), Order::kRowMajor), out(gpu, {1, 2, 3}, {}, Order::kRowMajor);
  const m4j_causal_conv1d_args args = {sizeof args, 1, 0, x.tensor(), weight.tensor(), {}, {}, out.tensor(), {}};
  expect_error(m4j_causal_conv1d(gpu.get(), &args, &err), M4J_ERR_UNSUPPORTED, {"args.weight", "9 taps"});
}

TEST_F(CudaTensorOps, RmsNorm) {
  constexpr int64_t rows = 37, D = 42, G = 3;
  const auto x = random.normal(rows * D), gate = random.normal(rows * D), weight = random.normal(D);
  for (const bool in_place : {false, true}) {
    expect_like_cpu([&](const EnginePtr& engine, Order order, int32_t rounding, int32_t dtype) {
      const OnDevice xs(engine, {rows, D}, rounded(x, rounding), order, dtype),
          gates(engine, {rows, D}, rounded(gate, rounding), order, dtype), weights(engine, {D}, weight, order),
          out(engine, {rows, D}, {}, order, dtype);
      const m4j_rms_norm_args args = {sizeof args, G, 1e-5f, 0, xs.tensor(), gates.tensor(), weights.tensor(),
                                      in_place ? xs.tensor() : out.tensor()};
      EXPECT_EQ(m4j_rms_norm(engine.get(), &args, &err), M4J_OK) << err.message;
      return in_place ? xs.values() : out.values();
    });
  }
}

TEST_F(CudaTensorOps, SoftmaxAndLogSoftmax) {
  constexpr int64_t rows = 19, n = 1037;
  const auto x = random.normal(rows * n, 4);
  for (const auto op : {m4j_softmax, m4j_log_softmax}) {
    expect_like_cpu([&](const EnginePtr& engine, Order order, int32_t rounding, int32_t dtype) {
      const OnDevice xs(engine, {rows, n}, rounded(x, rounding), order, dtype), out(engine, {rows, n}, {}, order);
      const m4j_tensor x_tensor = xs.tensor(), out_tensor = out.tensor();
      EXPECT_EQ(op(engine.get(), &x_tensor, &out_tensor, &err), M4J_OK) << err.message;
      const auto result = out.values();
      if (dtype == M4J_F32) {
        EXPECT_EQ(op(engine.get(), &x_tensor, &x_tensor, &err), M4J_OK) << err.message;  // in place
        EXPECT_EQ(xs.values(), result);
      }
      return result;
    });
  }
}

class CudaTensorLinear : public CudaTensorOps, public ::testing::WithParamInterface<int32_t> {};

// Weights of every type and activations of every type, rows at odd strides, sizes that no vector divides.
TEST_P(CudaTensorLinear, EverySizeAndType) {
  const int32_t stored = GetParam();
  const bool quantised = stored == M4J_Q8_0 || stored == M4J_Q4_0;
  for (const int64_t in : {8, 19, 32, 96}) {
    if (quantised && in % 32 != 0) continue;
    for (const int64_t out_dim : {7, 64}) {
      for (const int64_t rows : {1, 3, 5, 70}) {
        const auto weight = random.normal(out_dim * in), x = random.normal(rows * in), bias = random.normal(out_dim);
        // As stored, and as the CPU gets it: the same numbers.
        std::vector<unsigned char> bytes(static_cast<size_t>(dtype_bytes(dtype_of(stored), out_dim * in)));
        const m4j_tensor plain{const_cast<float*>(weight.data()), M4J_F32, 2, {out_dim, in}, {in, 1}};
        m4j_tensor host{bytes.data(), stored, 2, {out_dim, in}, {in, 1}};
        ASSERT_EQ(quantised ? m4j_quantize(gpu.get(), &plain, &host, &err) : m4j_copy(cpu.get(), &plain, &host, &err),
                  M4J_OK)
            << err.message;
        const BufferPtr memory = make_buffer(gpu, static_cast<int64_t>(bytes.size()));
        copy_bytes(gpu, m4j_buffer_data(memory.get()), bytes.data(), bytes.size(), M4J_TO_DEVICE);
        m4j_tensor there = host;
        there.data = m4j_buffer_data(memory.get());
        for (const int32_t dtype : kDTypes) {
          for (const int32_t out_dtype : {dtype, int32_t{M4J_F32}}) {
            SCOPED_TRACE("in " + std::to_string(in) + ", out " + std::to_string(out_dim) + ", rows " +
                         std::to_string(rows) + ", x " + std::to_string(dtype) + ", result " +
                         std::to_string(out_dtype));
            const OnDevice cpu_x(cpu, {rows, in}, rounded(x, dtype), Order::kRowMajor),
                cpu_bias(cpu, {out_dim}, bias, Order::kRowMajor), expected(cpu, {rows, out_dim}, {}, Order::kRowMajor);
            m4j_linear_args args = {sizeof args, cpu_x.tensor(), host, cpu_bias.tensor(), expected.tensor()};
            ASSERT_EQ(m4j_linear(cpu.get(), &args, &err), M4J_OK) << err.message;
            const OnDevice gpu_x(gpu, {rows, in}, rounded(x, dtype), Order::kRowMajor, dtype),
                gpu_bias(gpu, {out_dim}, bias, Order::kGaps),
                actual(gpu, {rows, out_dim}, {}, Order::kRowMajor, out_dtype);
            args = {sizeof args, gpu_x.tensor(), there, gpu_bias.tensor(), actual.tensor()};
            ASSERT_EQ(m4j_linear(gpu.get(), &args, &err), M4J_OK) << err.message;
            const auto values = expected.values();
            EXPECT_LT(relative_error(actual.values(), {values.begin(), values.end()}), tolerance(dtype));
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Weights, CudaTensorLinear, ::testing::Values(M4J_F32, M4J_F16, M4J_BF16, M4J_Q8_0, M4J_Q4_0));

TEST_F(CudaTensorOps, EmbeddingOfEveryType) {
  constexpr int64_t V = 13, D = 64;
  const auto values = random.normal(V * D);
  const std::vector<int32_t> ids = {12, 0, 5, 5, 1};
  const auto count = static_cast<int64_t>(ids.size());
  for (const int32_t stored : {M4J_F32, M4J_F16, M4J_BF16, M4J_Q8_0, M4J_Q4_0}) {
    const bool quantised = stored == M4J_Q8_0 || stored == M4J_Q4_0;
    std::vector<unsigned char> bytes(static_cast<size_t>(dtype_bytes(dtype_of(stored), V * D)));
    const m4j_tensor plain{const_cast<float*>(values.data()), M4J_F32, 2, {V, D}, {D, 1}};
    m4j_tensor table{bytes.data(), stored, 2, {V, D}, {D, 1}};
    ASSERT_EQ(quantised ? m4j_quantize(cpu.get(), &plain, &table, &err) : m4j_copy(cpu.get(), &plain, &table, &err),
              M4J_OK);
    const OnDevice expected(cpu, {count, D}, {}, Order::kRowMajor), actual(gpu, {count, D}, {}, Order::kRowMajor);
    m4j_tensor out = expected.tensor();
    ASSERT_EQ(m4j_embedding(cpu.get(), &table, ids.data(), count, &out, &err), M4J_OK) << err.message;
    const BufferPtr memory = make_buffer(gpu, static_cast<int64_t>(bytes.size()));
    copy_bytes(gpu, m4j_buffer_data(memory.get()), bytes.data(), bytes.size(), M4J_TO_DEVICE);
    table.data = m4j_buffer_data(memory.get());
    out = actual.tensor();
    ASSERT_EQ(m4j_embedding(gpu.get(), &table, ids.data(), count, &out, &err), M4J_OK) << err.message;
    EXPECT_EQ(actual.values(), expected.values());
  }
}

TEST_F(CudaTensorOps, CopyTakesAnyStridesAndTypes) {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{7}, {3, 50}, {2, 33, 71}, {3, 1, 40, 35}, {2, 3, 4, 5}}) {
    int64_t size = 1;
    for (const int64_t d : shape) size *= d;
    const auto values = random.normal(size);
    for (const int32_t from_type : kDTypes) {
      for (const int32_t to_type : kDTypes) {
        for (const Order from : kOrders) {
          for (const Order to : kOrders) {
            const OnDevice x(gpu, shape, rounded(values, from_type), from, from_type), out(gpu, shape, {}, to, to_type);
            const m4j_tensor x_tensor = x.tensor(), out_tensor = out.tensor();
            ASSERT_EQ(m4j_copy(gpu.get(), &x_tensor, &out_tensor, &err), M4J_OK) << err.message;
            EXPECT_EQ(out.values(), rounded(rounded(values, from_type), to_type));
          }
        }
      }
    }
  }
}

TEST_F(CudaTensorOps, CopyBytesInEveryDirection) {
  for (const int64_t bytes : {1, 1000, (4 << 20) - 1, (4 << 20) + 3, 13 << 20}) {
    const auto words = random.ids((bytes + 3) / 4, INT32_MAX);
    std::vector<int32_t> back(words.size(), -1);
    const BufferPtr a = make_buffer(gpu, bytes), b = make_buffer(gpu, bytes);
    std::vector<char> zeros(static_cast<size_t>(bytes), 1);
    copy_bytes(gpu, zeros.data(), m4j_buffer_data(a.get()), static_cast<size_t>(bytes), M4J_TO_HOST);
    EXPECT_EQ(zeros, std::vector<char>(static_cast<size_t>(bytes), 0));
    copy_bytes(gpu, m4j_buffer_data(a.get()), words.data(), static_cast<size_t>(bytes), M4J_TO_DEVICE);
    copy_bytes(gpu, m4j_buffer_data(b.get()), m4j_buffer_data(a.get()), static_cast<size_t>(bytes), M4J_ON_DEVICE);
    copy_bytes(gpu, back.data(), m4j_buffer_data(b.get()), static_cast<size_t>(bytes), M4J_TO_HOST);
    EXPECT_EQ(std::memcmp(back.data(), words.data(), static_cast<size_t>(bytes)), 0);
  }
}

// More than is packed at once: the rows of the ABI, which have to be turned, give what rows that lie right give.
TEST_F(CudaTensorOps, LargeTensorsAreCutAlongTime) {
  constexpr int64_t E = 512, L = 45000, N = 16;
  const BufferPtr memory = make_buffer(gpu, 5 * E * L * 4),
                  small = make_buffer(gpu, (2 * L * N + E * N + 2 * E * N) * 4);
  auto* base = static_cast<float*>(m4j_buffer_data(memory.get()));
  auto* rest = static_cast<float*>(m4j_buffer_data(small.get()));
  const auto values = random.normal(2 * E * L), bc = random.normal(2 * L * N), A = random.uniform(E * N, -4, -0.01f);
  copy_bytes(gpu, base, values.data(), values.size() * 4, M4J_TO_DEVICE);
  copy_bytes(gpu, rest, bc.data(), bc.size() * 4, M4J_TO_DEVICE);
  copy_bytes(gpu, rest + 2 * L * N, A.data(), A.size() * 4, M4J_TO_DEVICE);
  const auto by_time = [&](float* p) {
    return m4j_tensor{p, M4J_F32, 3, {1, E, L}, {E * L, 1, E}};
  };  // as kernels want it
  const auto by_channel = [&](float* p) { return m4j_tensor{p, M4J_F32, 3, {1, E, L}, {E * L, L, 1}}; };
  const auto u = by_time(base), delta = by_time(base + E * L), turned = by_channel(base + 2 * E * L);
  ASSERT_EQ(m4j_copy(gpu.get(), &u, &turned, &err), M4J_OK) << err.message;
  const m4j_tensor B{rest, M4J_F32, 4, {1, 1, N, L}, {N * L, N * L, L, 1}},
      C{rest + L * N, M4J_F32, 4, {1, 1, N, L}, {N * L, N * L, L, 1}},
      states_A{rest + 2 * L * N, M4J_F32, 2, {E, N}, {N, 1}};
  const auto state = [&](int64_t i) {
    return m4j_tensor{rest + 2 * L * N + (1 + i) * E * N, M4J_F32, 3, {1, E, N}, {E * N, N, 1}};
  };
  m4j_selective_scan_args args = {
      sizeof args, 1, 0, u, delta, states_A, B, C, {}, {}, {}, {}, by_time(base + 3 * E * L), state(0)};
  ASSERT_EQ(m4j_selective_scan(gpu.get(), &args, &err), M4J_OK) << err.message;
  args.u = turned;
  args.out = by_channel(base + 4 * E * L);
  args.last_state = state(1);
  ASSERT_EQ(m4j_selective_scan(gpu.get(), &args, &err), M4J_OK) << err.message;
  const m4j_tensor back = by_time(base + 2 * E * L);  // u is not needed any more
  ASSERT_EQ(m4j_copy(gpu.get(), &args.out, &back, &err), M4J_OK) << err.message;
  std::vector<float> expected(E * L), actual(E * L), states(2 * E * N);
  copy_bytes(gpu, expected.data(), base + 3 * E * L, expected.size() * 4, M4J_TO_HOST);
  copy_bytes(gpu, actual.data(), base + 2 * E * L, actual.size() * 4, M4J_TO_HOST);
  copy_bytes(gpu, states.data(), rest + 2 * L * N + E * N, states.size() * 4, M4J_TO_HOST);
  EXPECT_LT(relative_error(actual, {expected.begin(), expected.end()}), 1e-5);
  EXPECT_LT(relative_error({states.begin() + E * N, states.end()}, {states.begin(), states.begin() + E * N}), 1e-5);
}

TEST_F(CudaTensorOps, MemoryOfTheWrongPlaceIsRefused) {
  const auto values = random.normal(12);
  const OnDevice here(gpu, {3, 4}, values, Order::kRowMajor), out(gpu, {3, 4}, {}, Order::kRowMajor);
  const Strided host({3, 4}, values, Order::kRowMajor);
  m4j_tensor x = host.tensor(), target = out.tensor();
  expect_error(m4j_softmax(gpu.get(), &x, &target, &err), M4J_ERR_INVALID_ARGUMENT,
               {"x", "not in GPU memory", "cuda:0"});
  x = here.tensor();
  target = host.tensor();
  expect_error(m4j_softmax(gpu.get(), &x, &target, &err), M4J_ERR_INVALID_ARGUMENT, {"out", "not in GPU memory"});
  m4j_rms_norm_args args = {sizeof args, 1, 1e-5f, 0, here.tensor(), {}, {}, out.tensor()};
  args.weight = {const_cast<float*>(values.data()), M4J_F32, 1, {4}, {1}};
  expect_error(m4j_rms_norm(gpu.get(), &args, &err), M4J_ERR_INVALID_ARGUMENT, {"args.weight", "not in GPU memory"});
  const OnDevice half(gpu, {3, 4}, values, Order::kRowMajor, M4J_BF16);
  args = {sizeof args, 1, 1e-5f, 0, half.tensor(), here.tensor(), {}, half.tensor()};
  expect_error(m4j_rms_norm(gpu.get(), &args, &err), M4J_ERR_UNSUPPORTED, {"args.gate", "F32", "BF16", "args.x"});
  std::vector<float> bytes(12);
  const auto copy = [&](void* to, const void* from, int32_t direction) {
    return m4j_copy_bytes(gpu.get(), to, from, 48, direction, &err);
  };
  void* there = out.tensor().data;
  expect_error(copy(there, bytes.data(), M4J_ON_DEVICE), M4J_ERR_INVALID_ARGUMENT, {"from", "not in GPU memory"});
  expect_error(copy(there, here.tensor().data, M4J_TO_DEVICE), M4J_ERR_INVALID_ARGUMENT,
               {"from", "expected host memory"});
  expect_error(copy(there, here.tensor().data, M4J_TO_HOST), M4J_ERR_INVALID_ARGUMENT, {"to", "expected host memory"});
  expect_error(copy(there, reinterpret_cast<void*>(4096), M4J_ON_DEVICE), M4J_ERR_INVALID_ARGUMENT,
               {"from", "not in GPU"});
  EXPECT_EQ(here.values(), values);
}

TEST_F(CudaTensorOps, BuffersAreCountedAndRefusedInWords) {
  const int64_t before = m4j_engine_device_bytes(gpu.get());
  {
    const BufferPtr buffer = make_buffer(gpu, 1 << 20);
    EXPECT_EQ(m4j_engine_device_bytes(gpu.get()), before + (1 << 20));
  }
  EXPECT_EQ(m4j_engine_device_bytes(gpu.get()), before);
  m4j_buffer* buffer = nullptr;
  expect_error(m4j_buffer_create(gpu.get(), int64_t{1} << 50, &buffer, &err), M4J_ERR_OUT_OF_MEMORY,
               {"1125899906.8 MB", "GPU memory", "are free"});
  EXPECT_EQ(m4j_engine_device_bytes(gpu.get()), before);
  EXPECT_NE(make_buffer(gpu, 100), nullptr);  // the engine goes on
}

TEST_F(CudaTensorOps, CallsInAQueueComputeWhatTheyWouldAlone) {
  TinyModel tiny({.family = M4J_MAMBA2, .even = true}, run_seed());
  const ModelPtr model = make_model(gpu, tiny);
  const StatesPtr states = make_states(model);
  const int64_t V = tiny.config.vocab_size;
  m4j_queue* queue = nullptr;
  ASSERT_EQ(m4j_queue_create(gpu.get(), &queue, &err), M4J_OK) << err.message;
  std::vector<Batch> batches;
  std::vector<m4j_slot> twins;
  for (const int64_t length : {1, 300, 1, 5000, 17}) {
    twins.push_back(take(states));
    batches.emplace_back(std::vector<m4j_slot>{take(states)},
                         std::vector<Tokens>{random.ids(length, static_cast<int32_t>(V))}, M4J_LOGITS_ALL, V);
  }
  for (size_t i = 0; i < batches.size(); ++i) {
    ASSERT_EQ(m4j_queue_advance(queue, states.get(), batches[i].args(), i, &err), M4J_OK) << err.message;
  }
  for (size_t i = 0; i < batches.size(); ++i) {
    m4j_completion completion{};
    ASSERT_EQ(m4j_queue_next(queue, -1, &completion, &err), M4J_OK) << err.message;
    EXPECT_EQ(completion.tag, i);
    EXPECT_EQ(completion.error.code, M4J_OK) << completion.error.message;
    EXPECT_EQ(batches[i].logits, advance(states, {twins[i]}, {batches[i].tokens}, V)[0]);
  }
  m4j_queue_release(queue);
}

TEST_F(CudaTensorOps, TheSelfTestRunsOnceAProcess) {
  std::string log;  // the fixture's engine was the first
  m4j_engine_options options{};
  options.struct_size = sizeof options;
  options.device = M4J_DEVICE_CUDA;
  options.log = [](void* user, int32_t, const char* message) { *static_cast<std::string*>(user) += message; };
  options.log_user = &log;
  m4j_engine* engine = nullptr;
  ASSERT_EQ(m4j_engine_create(&options, &engine, &err), M4J_OK) << err.message;
  m4j_engine_release(engine);
  EXPECT_NE(log.find("self-test 0 ms"), std::string::npos) << log;
}

}  // namespace
}  // namespace m4j::test
