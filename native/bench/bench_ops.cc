#include "bench_ops.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>

#include "ops/ops.h"
#include "runtime/memory.h"
#include "runtime/team.h"

namespace m4j::bench {
namespace {

using Floats = std::vector<float>;

Floats random_floats(int64_t n, float lo, float hi) {
  static std::mt19937 generator(std::random_device{}());
  std::uniform_real_distribution<float> draw(lo, hi);
  Floats v(static_cast<size_t>(n));
  for (float& f : v) f = draw(generator);
  return v;
}

// One op on one size. `run` works on `out` (poisoned before a check) and on `state`, which it also changes.
struct Case {
  std::string name, detail;
  double x;
  double work;  // a call: bytes for "GB/s", floating-point operations for "GFLOP/s", elements for "Gelem/s"
  std::string unit;
  int64_t scratch;
  Floats out, state;
  std::function<void(const Ops&, const Share&, float* out, float* state)> run;
};

Case linear_case(int64_t tokens, int64_t in, int64_t out_dim) {
  auto x = std::make_shared<Floats>(random_floats(tokens * in, -1, 1));
  auto w = std::make_shared<Floats>(random_floats(out_dim * in, -1, 1));
  Case c;
  c.name = "linear";
  c.detail = "T" + std::to_string(tokens) + " " + std::to_string(in) + "x" + std::to_string(out_dim) + " f32";
  c.x = static_cast<double>(tokens);
  const double products = static_cast<double>(in) * static_cast<double>(out_dim);
  c.unit = tokens == 1 ? "GB/s" : "GFLOP/s";
  c.work = tokens == 1 ? 4 * products : 2 * products * static_cast<double>(tokens);
  c.scratch = find_ops(nullptr)->linear_scratch(in, DType::kF32);
  c.out.resize(static_cast<size_t>(tokens * out_dim));
  c.run = [=](const Ops& ops, const Share& share, float* out, float*) {
    ops.linear({x->data(), in, w->data(), DType::kF32, in, nullptr, tokens, in, out_dim, out, out_dim}, share);
  };
  return c;
}

Case conv_case(int64_t tokens, int64_t channels) {
  constexpr int64_t K = 4;
  auto x = std::make_shared<Floats>(random_floats(tokens * channels, -1, 1));
  auto w = std::make_shared<Floats>(random_floats(K * channels, -1, 1));
  auto bias = std::make_shared<Floats>(random_floats(channels, -1, 1));
  Case c;
  c.name = "conv1d";
  c.detail = "T" + std::to_string(tokens) + " C" + std::to_string(channels) + " K4 silu";
  c.x = static_cast<double>(tokens);
  c.unit = "Gelem/s";
  c.work = static_cast<double>(tokens * channels);
  c.scratch = 0;
  c.out.resize(static_cast<size_t>(tokens * channels));
  c.state = random_floats((K - 1) * channels, -1, 1);
  c.run = [=](const Ops& ops, const Share& share, float* out, float* state) {
    ops.conv1d({x->data(), channels, w->data(), bias->data(), state, tokens, channels, K, true, out, channels}, share);
  };
  return c;
}

Case scan_case(int64_t tokens, int64_t d_inner) {
  constexpr int64_t N = 16;
  auto u = std::make_shared<Floats>(random_floats(tokens * d_inner, -1, 1));
  auto delta = std::make_shared<Floats>(random_floats(tokens * d_inner, -4, 0));
  auto z = std::make_shared<Floats>(random_floats(tokens * d_inner, -2, 2));
  auto a = std::make_shared<Floats>(random_floats(N * d_inner, -16, -1));
  auto bc = std::make_shared<Floats>(random_floats(tokens * 2 * N, -1, 1));
  auto d = std::make_shared<Floats>(random_floats(d_inner, -1, 1));
  auto bias = std::make_shared<Floats>(random_floats(d_inner, -1, 1));
  Case c;
  c.name = "selective_scan";
  c.detail = "T" + std::to_string(tokens) + " E" + std::to_string(d_inner) + " N16 +z +D";
  c.x = static_cast<double>(tokens);
  c.unit = "Gelem/s";
  c.work = static_cast<double>(tokens * d_inner * N);
  c.scratch = 0;
  c.out.resize(static_cast<size_t>(tokens * d_inner));
  c.state = random_floats(N * d_inner, -1, 1);
  c.run = [=](const Ops& ops, const Share& share, float* out, float* state) {
    SelectiveScanArgs s{};
    s.u = u->data(), s.ld_u = d_inner;
    s.delta = delta->data(), s.ld_delta = d_inner;
    s.A = a->data();
    s.B = bc->data(), s.C = bc->data() + N, s.ld_bc = 2 * N;
    s.D = d->data();
    s.z = z->data(), s.ld_z = d_inner;
    s.delta_bias = bias->data();
    s.delta_softplus = true;
    s.tokens = tokens, s.d_inner = d_inner, s.d_state = N, s.n_groups = 1;
    s.state = state;
    s.out = out, s.ld_out = d_inner;
    ops.selective_scan(s, share);
  };
  return c;
}

Case ssd_case(int64_t tokens, int64_t heads) {
  constexpr int64_t P = 64, N = 128, kChunk = 256;
  const int64_t d_inner = heads * P;
  auto x = std::make_shared<Floats>(random_floats(tokens * d_inner, -1, 1));
  auto dt = std::make_shared<Floats>(random_floats(tokens * heads, -4, 0));
  auto a = std::make_shared<Floats>(random_floats(heads, -16, -1));
  auto bc = std::make_shared<Floats>(random_floats(tokens * 2 * N, -1, 1));
  auto d = std::make_shared<Floats>(random_floats(heads, -1, 1));
  Case c;
  c.name = tokens == 1 ? "ssd_step" : "ssd_chunk";
  c.detail = "T" + std::to_string(tokens) + " H" + std::to_string(heads) + " P64 N128";
  c.x = static_cast<double>(tokens);
  c.unit = "Gelem/s";
  c.work = static_cast<double>(tokens * d_inner * N);
  c.scratch = std::max(find_ops(nullptr)->ssd_chunk_scratch(P, N, kChunk), reference_ops().ssd_chunk_scratch(P, N, kChunk));
  c.out.resize(static_cast<size_t>(tokens * d_inner));
  c.state = random_floats(d_inner * N, -1, 1);
  c.run = [=](const Ops& ops, const Share& share, float* out, float* state) {
    SsdArgs s{};
    s.x = x->data(), s.ld_x = d_inner;
    s.dt = dt->data(), s.ld_dt = heads;
    s.A = a->data();
    s.B = bc->data(), s.C = bc->data() + N, s.ld_bc = 2 * N;
    s.D = d->data();
    s.dt_softplus = true;
    s.dt_max = std::numeric_limits<float>::infinity();
    s.tokens = tokens, s.heads = heads, s.headdim = P, s.d_state = N, s.n_groups = 1, s.chunk_size = kChunk;
    s.state = state;
    s.out = out, s.ld_out = d_inner;
    (tokens == 1 ? ops.ssd_step : ops.ssd_chunk)(s, share);
  };
  return c;
}

Case norm_case(int64_t tokens, int64_t dim) {
  auto x = std::make_shared<Floats>(random_floats(tokens * dim, -1, 1));
  auto gate = std::make_shared<Floats>(random_floats(tokens * dim, -1, 1));
  auto w = std::make_shared<Floats>(random_floats(dim, -1, 1));
  Case c;
  c.name = "rms_norm";
  c.detail = "T" + std::to_string(tokens) + " D" + std::to_string(dim) + " gated";
  c.x = static_cast<double>(tokens);
  c.unit = "Gelem/s";
  c.work = static_cast<double>(tokens * dim);
  c.scratch = 0;
  c.out.resize(static_cast<size_t>(tokens * dim));
  c.run = [=](const Ops& ops, const Share& share, float* out, float*) {
    RmsNormArgs n{};
    n.x = x->data(), n.ld_x = dim;
    n.gate = gate->data(), n.ld_gate = dim;
    n.weight = w->data();
    n.eps = 1e-5f;
    n.tokens = tokens, n.dim = dim, n.n_groups = 1;
    n.out = out, n.ld_out = dim;
    ops.rms_norm(n, share);
  };
  return c;
}

std::vector<Case> cases(int64_t most_tokens) {
  std::vector<Case> all;
  for (int64_t tokens : {int64_t{1}, int64_t{16}, most_tokens}) {
    for (auto [in, out] : {std::pair<int64_t, int64_t>{768, 3072}, {1536, 768}, {1536, 80}, {48, 1536}})
      all.push_back(linear_case(tokens, in, out));
    all.push_back(conv_case(tokens, 1536));
    all.push_back(scan_case(tokens, 1536));
    all.push_back(ssd_case(tokens, 24));
    all.push_back(norm_case(tokens, 1536));
  }
  return all;
}

}  // namespace

bool check_ops(const Plan& plan) {
  const Ops& ops = *find_ops(plan.simd());
  bool good = true;
  for (Case& c : cases(67)) {
    FloatBuffer scratch(c.scratch + 1);
    const Share alone{0, 1, scratch.data(), c.scratch};
    Floats out = c.out, want = c.out, state = c.state, want_state = c.state;
    std::memset(out.data(), 0xFF, out.size() * sizeof(float));
    c.run(ops, alone, out.data(), state.data());
    c.run(reference_ops(), alone, want.data(), want_state.data());
    const double out_error = relative_error(out, want.data()), state_error = relative_error(state, want_state.data());
    const bool close = out_error < 1e-5 && state_error < 1e-5;  // false for NaN in either
    std::printf("check    %-60s relative error %.1e %s\n", (c.name + " " + c.detail).c_str(),
                std::max(out_error, state_error), close ? "ok" : "WRONG");
    good &= close;
  }
  return good;
}

void time_ops(const Plan& plan, int threads, const Ceilings& ceilings, Report& report) {
  const Ops& ops = *find_ops(plan.simd());
  Team team(threads);
  for (Case& c : cases(512)) {
    FloatBuffer scratch((c.scratch + 16) * threads);
    const Spread t = time_call(
        [&] {
          team.run([&](int i) {
            c.run(ops, Share{i, threads, scratch.data() + i * (c.scratch + 16), c.scratch}, c.out.data(), c.state.data());
          });
        },
        plan.repeat);
    const double ceiling = c.unit == "GFLOP/s" ? ceilings.sgemm_gflops.median : 0;
    report.add({"op", c.name, c.detail, c.x, rate_of(t, c.work * 1e-9), c.unit, ceiling});
  }
}

}  // namespace m4j::bench
