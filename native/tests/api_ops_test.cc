// The public operations on tensors of any strides: what comes out does not depend on how the memory is laid out.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "support/api_test.h"
#include "support/safetensors.h"
#include "support/strided.h"

namespace m4j::test {
namespace {

using Golden = std::map<std::string, GoldenTensor>;

class ApiOpsTest : public ApiTest {
 protected:
  // run(engine, order) on every instruction set and memory order: within 1e-5 of the expected values, and the same
  // bits in every order.
  void expect_everywhere(const std::function<std::vector<float>(m4j_engine*, Order)>& run,
                         const std::vector<double>& expected) {
    for (const std::string& target : simd_targets()) {
      SCOPED_TRACE(target);
      const auto engine = make_engine(2, target.c_str());
      const auto first = run(engine.get(), Order::kRowMajor);
      EXPECT_LT(relative_error(first, expected), 1e-5);
      for (const Order order : kOrders) {
        EXPECT_EQ(run(engine.get(), order), first) << "order " << static_cast<int>(order);
      }
    }
  }

  static Strided input(const Golden& g, const std::string& name, Order order) {
    return Strided(g.at(name).shape, g.at(name).values, order);
  }
  static Strided output(const Golden& g, const std::string& name, Order order) {
    return Strided(g.at(name).shape, {}, order);
  }
  static std::vector<double> expected(const Golden& g, std::initializer_list<std::string> names) {
    std::vector<double> all;
    for (const auto& name : names) all.insert(all.end(), g.at(name).values.begin(), g.at(name).values.end());
    return all;
  }
};

TEST_F(ApiOpsTest, SelectiveScanGoldens) {
  for (const char* file : {"op-scan-small", "op-scan-init-groups", "op-scan-long"}) {
    SCOPED_TRACE(file);
    const Golden g = read_golden(std::string(file) + ".safetensors");
    const auto run = [&](m4j_engine* engine, Order order) {
      const Strided u = input(g, "u", order), delta = input(g, "delta", order), A = input(g, "A", order),
                    B = input(g, "B", order), C = input(g, "C", order), D = input(g, "D", order),
                    z = input(g, "z", order), bias = input(g, "delta_bias", order),
                    initial = input(g, "initial_state", order), out = output(g, "out", order),
                    last = output(g, "last_state", order);
      const m4j_selective_scan_args args = {sizeof args, 1, 0, u.tensor(), delta.tensor(), A.tensor(), B.tensor(),
                                            C.tensor(), D.tensor(), z.tensor(), bias.tensor(), initial.tensor(),
                                            out.tensor(), last.tensor()};
      EXPECT_EQ(m4j_selective_scan(engine, &args, &err), M4J_OK) << err.message;
      EXPECT_TRUE(out.gaps_untouched() && last.gaps_untouched());

      // The state may be replaced where it lies.
      m4j_selective_scan_args in_place = args;
      in_place.last_state = in_place.initial_state;
      EXPECT_EQ(m4j_selective_scan(engine, &in_place, &err), M4J_OK) << err.message;
      EXPECT_EQ(initial.values(), last.values());
      return joined({out.values(), last.values()});
    };
    expect_everywhere(run, expected(g, {"out", "last_state"}));
  }
}

TEST_F(ApiOpsTest, SsdGoldensWithEveryChunkSize) {
  for (const char* file : {"op-ssd-small", "op-ssd-init-groups", "op-ssd-long"}) {
    SCOPED_TRACE(file);
    const Golden g = read_golden(std::string(file) + ".safetensors");
    for (const int64_t chunk_size : {1, 7, 64, 300, 4096}) {
      SCOPED_TRACE(chunk_size);
      const auto run = [&](m4j_engine* engine, Order order) {
        const Strided x = input(g, "x", order), dt = input(g, "dt", order), A = input(g, "A", order),
                      B = input(g, "B", order), C = input(g, "C", order), D = input(g, "D", order),
                      bias = input(g, "dt_bias", order), initial = input(g, "initial_state", order),
                      out = output(g, "out", order), last = output(g, "last_state", order);
        const m4j_ssd_args args = {sizeof args, 1, 0, chunk_size, 0, INFINITY, x.tensor(), dt.tensor(), A.tensor(),
                                   B.tensor(), C.tensor(), D.tensor(), bias.tensor(), initial.tensor(), out.tensor(),
                                   last.tensor()};
        EXPECT_EQ(m4j_ssd(engine, &args, &err), M4J_OK) << err.message;
        EXPECT_TRUE(out.gaps_untouched() && last.gaps_untouched());
        return joined({out.values(), last.values()});
      };
      expect_everywhere(run, expected(g, {"out", "last_state"}));
    }
  }
}

TEST_F(ApiOpsTest, AbsentOptionsAreZeros) {
  const Golden g = read_golden("op-scan-small.safetensors");
  const auto engine = make_engine();
  const Order order = Order::kRowMajor;
  const Strided u = input(g, "u", order), delta = input(g, "delta", order), A = input(g, "A", order),
                B = input(g, "B", order), C = input(g, "C", order), out = output(g, "out", order),
                same = output(g, "out", order);
  const Strided zero_D(g.at("D").shape, std::vector<float>(g.at("D").values.size(), 0.0f), order);
  const Strided zero_state(g.at("last_state").shape, std::vector<float>(g.at("last_state").values.size(), 0.0f), order);
  m4j_selective_scan_args args{};
  args.struct_size = sizeof args;
  args.delta_softplus = 1;
  args.u = u.tensor(), args.delta = delta.tensor(), args.A = A.tensor(), args.B = B.tensor(), args.C = C.tensor();
  args.out = out.tensor();
  ASSERT_EQ(m4j_selective_scan(engine.get(), &args, &err), M4J_OK) << err.message;
  args.D = zero_D.tensor(), args.delta_bias = zero_D.tensor(), args.initial_state = zero_state.tensor();
  args.out = same.tensor();
  ASSERT_EQ(m4j_selective_scan(engine.get(), &args, &err), M4J_OK) << err.message;
  EXPECT_EQ(out.values(), same.values());
}

TEST_F(ApiOpsTest, CausalConv1dCarriesItsWindow) {
  constexpr int64_t B = 2, L = 300, C = 13;  // longer than a tile
  for (const int64_t K : {1, 2, 4, 5}) {
    for (const int32_t silu : {0, 1}) {
      const auto x = random.normal(B * L * C), weight = random.normal(C * K), bias = random.normal(C),
                 window = random.normal(B * C * (K - 1));
      std::vector<double> expected_out, expected_window;
      const auto past = [&](int64_t b, int64_t t, int64_t c) -> double {
        return t >= 0 ? x[static_cast<size_t>((b * L + t) * C + c)]
                      : window[static_cast<size_t>((b * C + c) * (K - 1) + K - 1 + t)];
      };
      for (int64_t b = 0; b < B; ++b) {
        for (int64_t t = 0; t < L; ++t) {
          for (int64_t c = 0; c < C; ++c) {
            double y = bias[static_cast<size_t>(c)];
            for (int64_t k = 0; k < K; ++k) y += weight[static_cast<size_t>(c * K + k)] * past(b, t - (K - 1) + k, c);
            expected_out.push_back(silu ? y / (1 + std::exp(-y)) : y);
          }
        }
        for (int64_t c = 0; c < C; ++c) {
          for (int64_t k = 0; k < K - 1; ++k) expected_window.push_back(past(b, L - (K - 1) + k, c));
        }
      }
      expected_out.insert(expected_out.end(), expected_window.begin(), expected_window.end());
      const auto run = [&](m4j_engine* engine, Order order) {
        const Strided xs({B, L, C}, x, order), ws({C, K}, weight, order), bs({C}, bias, order), out({B, L, C}, {}, order);
        Strided initial, last;
        if (K > 1) {
          initial = Strided({B, C, K - 1}, window, order);
          last = Strided({B, C, K - 1}, {}, order);
        }
        const m4j_causal_conv1d_args args = {sizeof args, silu, 0, xs.tensor(), ws.tensor(), bs.tensor(),
                                             initial.tensor(), out.tensor(), last.tensor()};
        EXPECT_EQ(m4j_causal_conv1d(engine, &args, &err), M4J_OK) << err.message;
        EXPECT_TRUE(out.gaps_untouched() && last.gaps_untouched());
        return joined({out.values(), last.values()});
      };
      expect_everywhere(run, expected_out);
    }
  }
}

TEST_F(ApiOpsTest, RmsNormWithGateGroupsAndInPlace) {
  constexpr int64_t rows = 259, D = 30, G = 3;
  const auto x = random.normal(rows * D), gate = random.normal(rows * D), weight = random.normal(D);
  std::vector<double> expected_out;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < G; ++g) {
      std::vector<double> v;
      double squares = 0;
      for (int64_t i = 0; i < D / G; ++i) {
        const size_t at = static_cast<size_t>(r * D + g * (D / G) + i);
        v.push_back(x[at] * (gate[at] / (1 + std::exp(-double{gate[at]}))));
        squares += v.back() * v.back();
      }
      for (int64_t i = 0; i < D / G; ++i) {
        expected_out.push_back(v[static_cast<size_t>(i)] / std::sqrt(squares / (D / G) + 1e-5) *
                               weight[static_cast<size_t>(g * (D / G) + i)]);
      }
    }
  }
  const auto run = [&](m4j_engine* engine, Order order) {
    const Strided xs({rows, D}, x, order), gs({rows, D}, gate, order), ws({D}, weight, order), out({rows, D}, {}, order);
    m4j_rms_norm_args args = {sizeof args, G, 1e-5f, 0, xs.tensor(), gs.tensor(), ws.tensor(), out.tensor()};
    EXPECT_EQ(m4j_rms_norm(engine, &args, &err), M4J_OK) << err.message;
    EXPECT_EQ(xs.values(), x);
    EXPECT_TRUE(out.gaps_untouched());
    args.out = args.x;
    EXPECT_EQ(m4j_rms_norm(engine, &args, &err), M4J_OK) << err.message;
    EXPECT_EQ(xs.values(), out.values());
    return out.values();
  };
  expect_everywhere(run, expected_out);
}

TEST_F(ApiOpsTest, SoftmaxAndLogSoftmax) {
  constexpr int64_t rows = 257, n = 37;
  const auto x = random.normal(rows * n, 4);
  std::vector<double> soft, log_soft;
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(double{x[static_cast<size_t>(r * n + i)]});
    for (int64_t i = 0; i < n; ++i) {
      log_soft.push_back(x[static_cast<size_t>(r * n + i)] - std::log(sum));
      soft.push_back(std::exp(log_soft.back()));
    }
  }
  const auto run_with = [&](auto op) {
    return [&, op](m4j_engine* engine, Order order) {
      const Strided xs({rows, n}, x, order), out({rows, n}, {}, order);
      EXPECT_EQ(op(engine, &xs.tensor(), &out.tensor(), &err), M4J_OK) << err.message;
      EXPECT_EQ(op(engine, &xs.tensor(), &xs.tensor(), &err), M4J_OK) << err.message;  // in place
      EXPECT_EQ(xs.values(), out.values());
      EXPECT_TRUE(out.gaps_untouched());
      return out.values();
    };
  };
  expect_everywhere(run_with(m4j_softmax), soft);
  expect_everywhere(run_with(m4j_log_softmax), log_soft);
}

TEST_F(ApiOpsTest, LinearAndEmbeddingOnViews) {
  constexpr int64_t rows = 5, in = 19, out_dim = 7, gap = 4;
  const auto x = random.normal(rows * (in + gap)), weight = random.normal(out_dim * (in + gap)),
             bias = random.normal(out_dim);
  std::vector<double> expected_out, expected_rows;
  const std::vector<int32_t> ids = {6, 0, 3, 3, 1};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < out_dim; ++o) {
      double sum = bias[static_cast<size_t>(o)];
      for (int64_t i = 0; i < in; ++i) {
        sum += double{x[static_cast<size_t>(r * (in + gap) + i)]} * weight[static_cast<size_t>(o * (in + gap) + i)];
      }
      expected_out.push_back(sum);
    }
    for (int64_t i = 0; i < in; ++i) {
      expected_rows.push_back(weight[static_cast<size_t>(ids[static_cast<size_t>(r)] * (in + gap) + i)]);
    }
  }
  const auto matrix = [](const std::vector<float>& v, int64_t r, int64_t c, int64_t ld) {
    return m4j_tensor{const_cast<float*>(v.data()), M4J_F32, 2, {r, c}, {ld, 1}};
  };
  for (const std::string& target : simd_targets()) {
    SCOPED_TRACE(target);
    const auto engine = make_engine(2, target.c_str());
    std::vector<float> out(rows * out_dim, NAN), gathered(rows * in, NAN);
    const m4j_linear_args args = {sizeof args, matrix(x, rows, in, in + gap), matrix(weight, out_dim, in, in + gap),
                                  {const_cast<float*>(bias.data()), M4J_F32, 1, {out_dim}, {1}},
                                  matrix(out, rows, out_dim, out_dim)};
    ASSERT_EQ(m4j_linear(engine.get(), &args, &err), M4J_OK) << err.message;
    EXPECT_LT(relative_error(out, expected_out), 1e-5);
    const m4j_tensor table = matrix(weight, out_dim, in, in + gap), target_rows = matrix(gathered, rows, in, in);
    ASSERT_EQ(m4j_embedding(engine.get(), &table, ids.data(), rows, &target_rows, &err), M4J_OK) << err.message;
    EXPECT_EQ(relative_error(gathered, expected_rows), 0);
  }
}

// ---- Refusals ----

class ApiOpsRefusalTest : public ApiTest {
 protected:
  EnginePtr engine = make_engine(1);
  std::vector<float> memory = std::vector<float>(4096, 0.5f);
  int64_t used = 0;

  ~ApiOpsRefusalTest() override { engine.reset(); }

  // The next free part of `memory` as a row-major tensor.
  m4j_tensor tensor(std::initializer_list<int64_t> shape) {
    m4j_tensor t{memory.data() + used, M4J_F32, static_cast<int32_t>(shape.size()), {}, {}};
    std::copy(shape.begin(), shape.end(), t.shape);
    int64_t size = 1;
    for (int i = t.rank - 1; i >= 0; --i) {
      t.strides[i] = size;
      size *= t.shape[i];
    }
    used += size;
    return t;
  }

  template <typename Args>
  void refused(m4j_status (*op)(m4j_engine*, const Args*, m4j_error*), Args args,
               const std::function<void(Args&)>& change, const std::vector<std::string>& words,
               m4j_status code = M4J_ERR_INVALID_ARGUMENT) {
    const std::vector<float> before = memory;
    change(args);
    expect_error(op(engine.get(), &args, &err), code, words);
    EXPECT_EQ(memory, before);
  }
};

TEST_F(ApiOpsRefusalTest, SelectiveScan) {
  using Args = m4j_selective_scan_args;
  const Args good = {sizeof good, 1, 0, tensor({2, 4, 5}), tensor({2, 4, 5}), tensor({4, 3}), tensor({2, 2, 3, 5}),
                     tensor({2, 2, 3, 5}), tensor({4}), tensor({2, 4, 5}), tensor({4}), tensor({2, 4, 3}),
                     tensor({2, 4, 5}), tensor({2, 4, 3})};
  const auto bad = [&](const std::function<void(Args&)>& change, const std::vector<std::string>& words,
                       m4j_status code = M4J_ERR_INVALID_ARGUMENT) {
    refused(m4j_selective_scan, good, change, words, code);
  };
  bad([](Args& a) { a.struct_size = 16; }, {"args", "struct_size"});
  bad([](Args& a) { a.delta_softplus = 2; }, {"delta_softplus", "2"});
  bad([](Args& a) { a.reserved = 2; }, {"reserved"});
  bad([](Args& a) { a.u.data = nullptr; }, {"args.u", "absent"});
  bad([](Args& a) { a.u.rank = 2; }, {"args.u", "rank"});
  bad([](Args& a) { a.u.shape[1] = 0; }, {"args.u", "[2, 0, 5]"});
  bad([](Args& a) { a.u.dtype = M4J_BF16; }, {"args.u", "BF16", "F32"}, M4J_ERR_UNSUPPORTED);
  bad([](Args& a) { a.u.dtype = -1; }, {"args.u", "dtype -1"});
  bad([](Args& a) { a.delta.shape[2] = 6; }, {"args.delta", "[2, 4, 6]", "L=5"});
  bad([](Args& a) { a.A.shape[0] = 5; }, {"args.A", "E=4"});
  bad([](Args& a) { a.B.shape[1] = 3; }, {"args.B", "3 groups", "E = 4"});
  bad([](Args& a) { a.C.shape[1] = 1; }, {"args.C", "G=2"});
  bad([](Args& a) { a.D.shape[0] = 3; }, {"args.D", "E=4"});
  bad([](Args& a) { a.z.shape[0] = 1; }, {"args.z", "B=2"});
  bad([](Args& a) { a.delta_bias.rank = 2; }, {"args.delta_bias", "rank"});
  bad([](Args& a) { a.initial_state.shape[2] = 2; }, {"args.initial_state", "N=3"});
  bad([](Args& a) { a.out.data = nullptr; }, {"args.out", "absent"});
  bad([](Args& a) { a.last_state.shape[1] = 5; }, {"args.last_state", "E=4"});
  bad([](Args& a) { a.u.strides[0] = INT64_MAX; }, {"args.u", "64-bit"});
  bad([](Args& a) { a.u.data = static_cast<char*>(a.u.data) + 1; }, {"args.u", "aligned"});
  bad([](Args& a) { a.out.strides[2] = 0; }, {"args.out", "share memory"});
  bad([](Args& a) { a.out.strides[1] = 3; }, {"args.out", "share memory"});
  bad([](Args& a) { a.out.data = a.u.data; }, {"args.out", "overlaps args.u"});
  bad([](Args& a) { a.out.data = static_cast<float*>(a.z.data) + 3; }, {"args.out", "overlaps"});
  bad([](Args& a) {  // the same memory in another order
        a.last_state = a.initial_state;
        a.last_state.strides[1] = 1;
        a.last_state.strides[2] = 4;
      },
      {"args.last_state", "overlaps args.initial_state"});
  bad([](Args& a) { a.last_state.data = a.out.data; }, {"overlaps args.last_state"});
  expect_error(m4j_selective_scan(nullptr, &good, &err), M4J_ERR_INVALID_ARGUMENT, {"engine"});
  expect_error(m4j_selective_scan(engine.get(), nullptr, &err), M4J_ERR_INVALID_ARGUMENT, {"args"});
  EXPECT_EQ(m4j_selective_scan(engine.get(), &good, &err), M4J_OK) << err.message;
}

TEST_F(ApiOpsRefusalTest, Ssd) {
  using Args = m4j_ssd_args;
  const Args good = {sizeof good, 1, 0, 4, 0, 1, tensor({2, 5, 4, 3}), tensor({2, 5, 4}), tensor({4}),
                     tensor({2, 5, 2, 6}), tensor({2, 5, 2, 6}), tensor({4}), tensor({4}), tensor({2, 4, 3, 6}),
                     tensor({2, 5, 4, 3}), tensor({2, 4, 3, 6})};
  const auto bad = [&](const std::function<void(Args&)>& change, const std::vector<std::string>& words) {
    refused(m4j_ssd, good, change, words);
  };
  bad([](Args& a) { a.struct_size = 0; }, {"struct_size"});
  bad([](Args& a) { a.chunk_size = 0; }, {"chunk_size", "0"});
  bad([](Args& a) { a.chunk_size = 4097; }, {"chunk_size", "4097"});
  bad([](Args& a) { a.dt_min = 2; }, {"dt_min", "2"});
  bad([](Args& a) { a.dt_max = NAN; }, {"dt_max"});
  bad([](Args& a) { a.dt_softplus = -1; }, {"dt_softplus"});
  bad([](Args& a) { a.x.rank = 3; }, {"args.x", "rank"});
  bad([](Args& a) { a.dt.shape[1] = 4; }, {"args.dt", "L=5"});
  bad([](Args& a) { a.A.shape[0] = 3; }, {"args.A", "H=4"});
  bad([](Args& a) { a.B.shape[2] = 3; }, {"args.B", "3 groups"});
  bad([](Args& a) { a.C.shape[3] = 5; }, {"args.C", "N=6"});
  bad([](Args& a) { a.D.shape[0] = 1; }, {"args.D", "H=4"});
  bad([](Args& a) { a.dt_bias.shape[0] = 1; }, {"args.dt_bias"});
  bad([](Args& a) { a.initial_state.shape[2] = 4; }, {"args.initial_state", "P=3"});
  bad([](Args& a) { a.out.shape[3] = 2; }, {"args.out", "P=3"});
  bad([](Args& a) { a.last_state.rank = 1; }, {"args.last_state"});
  bad([](Args& a) { a.out.data = a.x.data; }, {"args.out", "overlaps args.x"});
  EXPECT_EQ(m4j_ssd(engine.get(), &good, &err), M4J_OK) << err.message;
}

TEST_F(ApiOpsRefusalTest, CausalConv1d) {
  using Args = m4j_causal_conv1d_args;
  const Args good = {sizeof good, 1, 0, tensor({2, 5, 3}), tensor({3, 4}), tensor({3}), tensor({2, 3, 3}),
                     tensor({2, 5, 3}), tensor({2, 3, 3})};
  const auto bad = [&](const std::function<void(Args&)>& change, const std::vector<std::string>& words) {
    refused(m4j_causal_conv1d, good, change, words);
  };
  bad([](Args& a) { a.silu = 9; }, {"silu", "9"});
  bad([](Args& a) { a.weight.shape[0] = 4; }, {"args.weight", "C=3"});
  bad([](Args& a) { a.bias.shape[0] = 4; }, {"args.bias", "C=3"});
  bad([](Args& a) { a.initial_window.shape[2] = 4; }, {"args.initial_window", "K-1=3"});
  bad([](Args& a) { a.out.data = a.x.data; }, {"args.out", "overlaps args.x"});
  bad([](Args& a) { a.last_window.strides[0] = 1; }, {"args.last_window", "share memory"});
  EXPECT_EQ(m4j_causal_conv1d(engine.get(), &good, &err), M4J_OK) << err.message;
}

TEST_F(ApiOpsRefusalTest, RowOps) {
  using Norm = m4j_rms_norm_args;
  const Norm norm = {sizeof norm, 2, 1e-5f, 0, tensor({3, 4}), tensor({3, 4}), tensor({4}), tensor({3, 4})};
  const auto bad_norm = [&](const std::function<void(Norm&)>& change, const std::vector<std::string>& words) {
    refused(m4j_rms_norm, norm, change, words);
  };
  bad_norm([](Norm& a) { a.n_groups = 3; }, {"n_groups", "3", "D = 4"});
  bad_norm([](Norm& a) { a.n_groups = 0; }, {"n_groups", "0"});
  bad_norm([](Norm& a) { a.eps = NAN; }, {"eps"});
  bad_norm([](Norm& a) { a.gate.shape[0] = 2; }, {"args.gate", "rows=3"});
  bad_norm([](Norm& a) { a.weight.shape[0] = 3; }, {"args.weight", "D=4"});
  bad_norm([](Norm& a) { a.out.data = static_cast<float*>(a.x.data) + 1; }, {"args.out", "overlaps args.x"});
  bad_norm([](Norm& a) { a.out.data = a.gate.data; }, {"args.out", "overlaps args.gate"});
  EXPECT_EQ(m4j_rms_norm(engine.get(), &norm, &err), M4J_OK) << err.message;

  using Linear = m4j_linear_args;
  const Linear linear = {sizeof linear, tensor({3, 4}), tensor({5, 4}), tensor({5}), tensor({3, 5})};
  const auto bad_linear = [&](const std::function<void(Linear&)>& change, const std::vector<std::string>& words) {
    refused(m4j_linear, linear, change, words);
  };
  bad_linear([](Linear& a) { a.weight.shape[1] = 3; }, {"args.weight", "in=4"});
  bad_linear([](Linear& a) { a.bias.shape[0] = 3; }, {"args.bias", "out=5"});
  bad_linear([](Linear& a) { a.x.strides[1] = 2; }, {"args.x", "rows contiguous"});
  bad_linear([](Linear& a) { std::swap(a.weight.strides[0], a.weight.strides[1]); }, {"args.weight", "rows contiguous"});
  bad_linear([](Linear& a) { a.out.shape[0] = 2; }, {"args.out", "rows=3"});
  bad_linear([](Linear& a) { a.out.data = a.x.data; }, {"args.out", "overlaps args.x"});
  EXPECT_EQ(m4j_linear(engine.get(), &linear, &err), M4J_OK) << err.message;

  const m4j_tensor table = tensor({5, 4}), rows = tensor({2, 4}), x = tensor({3, 4}), out = tensor({3, 5});
  const int32_t good_ids[] = {4, 0}, bad_ids[] = {1, 5}, negative_ids[] = {-1, 0};
  m4j_engine* e = engine.get();
  const auto invalid = M4J_ERR_INVALID_ARGUMENT;
  EXPECT_EQ(m4j_embedding(e, &table, good_ids, 2, &rows, &err), M4J_OK) << err.message;
  expect_error(m4j_embedding(e, &table, bad_ids, 2, &rows, &err), invalid, {"ids[1]", "5", "4"});
  expect_error(m4j_embedding(e, &table, negative_ids, 2, &rows, &err), invalid, {"ids[0]", "-1"});
  expect_error(m4j_embedding(e, &table, nullptr, 2, &rows, &err), invalid, {"ids"});
  expect_error(m4j_embedding(e, &table, good_ids, 0, &rows, &err), invalid, {"n_ids"});
  expect_error(m4j_embedding(e, &table, good_ids, 1, &rows, &err), invalid, {"out", "n_ids=1"});
  expect_error(m4j_embedding(e, nullptr, good_ids, 2, &rows, &err), invalid, {"table"});
  expect_error(m4j_embedding(e, &table, good_ids, 2, &table, &err), invalid, {"out"});
  expect_error(m4j_softmax(e, &x, &out, &err), invalid, {"out", "n=4"});
  expect_error(m4j_log_softmax(e, &x, nullptr, &err), invalid, {"out"});
  expect_error(m4j_softmax(nullptr, &x, &x, &err), invalid, {"engine"});
  EXPECT_EQ(m4j_softmax(e, &x, &x, &err), M4J_OK) << err.message;
}

}  // namespace
}  // namespace m4j::test
