// m4j-gpu-bench-scan: the kernels bound by memory or exponentials, against the scalar reference on some channels and
// then timed.   m4j-gpu-bench-scan [text that names must contain]
#include <limits>
#include <memory>
#include <string>

#include "gpu_measure.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/reference/reference_ops.h"
#include "ops/sampling.h"

namespace m4j::bench {
namespace {

constexpr DType kType = DType::kBF16;

struct Bench {
  GpuTimer timer;
  Table table;
  std::string filter;
  bool wants(const std::string& name) const { return name.find(filter) != std::string::npos; }
};

// `count` segments of `tokens` tokens, in slots of their own.
std::unique_ptr<GpuArray> segments_of(int64_t count, int64_t tokens) {
  std::vector<cuda::Segment> items;
  for (int64_t i = 0; i < count; ++i) items.push_back({i * tokens, tokens, i});
  auto memory = std::make_unique<GpuArray>(DType::kF32, count * static_cast<int64_t>(sizeof(cuda::Segment)) / 4);
  check(cudaMemcpy(memory->data(), items.data(), items.size() * sizeof(cuda::Segment), cudaMemcpyHostToDevice), "copy");
  return memory;
}

cuda::Segments view(const GpuArray& memory, int64_t count, int64_t tokens) {
  return {static_cast<const cuda::Segment*>(memory.data()), count, count * tokens, tokens};
}

// How much a sequence remembers: with A = -1 ... -N and delta around 0.01 as in freshly initialised models, or almost
// everything, the worst case of a scan in chunks.
enum class Memory { kInitial, kEndless };

// Relative error of a state: bfloat16 rounds it, up or down.
double allowed(DType state_type, double in_float32) { return state_type == DType::kF32 ? in_float32 : 5e-3; }
std::string states_of(DType state_type) { return state_type == DType::kF32 ? "" : ", bf16 states"; }
constexpr DType kStateTypes[] = {DType::kF32, DType::kBF16};

struct Scan {
  int64_t B, L, E, N;
  Memory memory;
  GpuArray u, delta, z, Bs, Cs, A, D, bias, out, states, workspace;
  std::unique_ptr<GpuArray> items;
  cuda::SelectiveScanArgs args;

  Scan(int64_t B, int64_t L, int64_t E, int64_t N, Memory memory, DType state_type = DType::kF32)
      : B(B), L(L), E(E), N(N), memory(memory), u(kType, B * L * E, -1, 1), delta(kType, B * L * E, -1, 1),
        z(kType, B * L * E, -2, 2), Bs(kType, B * L * N, -1, 1), Cs(kType, B * L * N, -1, 1),
        A(DType::kF32, N * E, -1.1f, -0.9f),
        D(DType::kF32, E, -1, 1), bias(DType::kF32, E, memory == Memory::kInitial ? -6.9f : -11.0f,
                                       memory == Memory::kInitial ? -2.25f : -10.0f),
        out(kType, B * L * E), states(state_type, B * N * E, -1, 1),
        workspace(DType::kF32, cuda::selective_scan_workspace(E, N, 1, {nullptr, B, B * L, L}) / 4),
        items(segments_of(B, L)) {
    std::vector<float> a = A.columns(N * E, 0, N * E);
    for (int64_t i = 0; i < N * E; ++i) a[i] *= memory == Memory::kInitial ? static_cast<float>(i / E + 1) : 0.01f;
    check(cudaMemcpy(A.data(), a.data(), a.size() * 4, cudaMemcpyHostToDevice), "copy");
    args = {kType, u.data(), E, delta.data(), E, A.floats(), Bs.data(), Cs.data(), N, D.floats(), z.data(), E,
            bias.floats(), true, view(*items, B, L), E, N, 1, states.data(), N * E, out.data(), E,
            {workspace.data(), cuda::selective_scan_workspace(E, N, 1, {nullptr, B, B * L, L})}, state_type};
  }

  // Of out and of the state, over some channels.
  double error(cudaStream_t stream) {
    constexpr int64_t kChannels = 4;
    const int64_t first = E / 2 / kChannels * kChannels;
    const auto vector = [&](const GpuArray& v, int64_t cols) { return v.columns(cols, first, kChannels); };
    std::vector<float> state = vector(states, E);  // [B, N, channels]
    cuda::selective_scan(args, stream);
    check(cudaStreamSynchronize(stream), "selective_scan");
    const auto hu = vector(u, E), hd = vector(delta, E), hz = vector(z, E), hA = vector(A, E), hD = vector(D, E),
               hb = vector(bias, E), hB = Bs.columns(N, 0, N), hC = Cs.columns(N, 0, N);
    std::vector<float> want(hu.size());
    for (int64_t b = 0; b < B; ++b) {
      const int64_t at = b * L * kChannels, bc = b * L * N;
      reference::selective_scan({&hu[at], kChannels, &hd[at], kChannels, hA.data(), &hB[bc], &hC[bc], N, hD.data(),
                                 &hz[at], kChannels, hb.data(), true, L, kChannels, N, 1,
                                 &state[b * N * kChannels], &want[at],
                                 kChannels},
                                {0, 1, nullptr, 0});
    }
    const double of_state = relative_error(vector(states, E), state.data());
    // The rounding of decays near 1 adds up where nothing is forgotten, in the reference too.
    const double most = allowed(args.state_type, memory == Memory::kEndless ? 1e-3 : 1e-4);
    if (!(of_state < most)) std::printf("state off by %.1e\n", of_state);
    return std::max(of_state, relative_error(vector(out, E), want.data()));
  }

  void run(Bench& bench, const std::string& name) {
    const double e = error(bench.timer.stream());
    const Spread s = bench.timer.time([&](int) { cuda::selective_scan(args, bench.timer.stream()); });
    bench.table.add(name, s, 2.0 * B * L * (4.0 * E + 2 * N), e);
  }
};

void scans(Bench& bench) {
  struct Shape {
    const char* name;
    int64_t B, L, E, N;
    Memory memory;
  };
  for (const Shape& s : {Shape{"scan B8 D5120 L2048 N16", 8, 2048, 5120, 16, Memory::kInitial},
                         Shape{"scan B1 D5120 L2048 N16", 1, 2048, 5120, 16, Memory::kInitial},
                         Shape{"scan B2 D5120 L2048 N16", 2, 2048, 5120, 16, Memory::kInitial},
                         Shape{"scan B4 D5120 L2048 N16", 4, 2048, 5120, 16, Memory::kInitial},
                         Shape{"scan B1 D1536 L512 N16", 1, 512, 1536, 16, Memory::kInitial},
                         Shape{"scan B8 D1536 L2048 N16", 8, 2048, 1536, 16, Memory::kInitial},
                         Shape{"scan B1 D5120 L512 N16", 1, 512, 5120, 16, Memory::kInitial},
                         Shape{"scan B1 D5120 L131072 N16", 1, 131072, 5120, 16, Memory::kInitial},
                         Shape{"scan B1 D5120 L131072 N16, endless memory", 1, 131072, 5120, 16, Memory::kEndless},
                         Shape{"scan B1 D1536 L1048576 N16", 1, 1048576, 1536, 16, Memory::kInitial},
                         Shape{"scan B1 D1536 L1048576 N16, endless memory", 1, 1048576, 1536, 16, Memory::kEndless},
                         Shape{"scan B8 D5120 L2048 N32", 8, 2048, 5120, 32, Memory::kInitial},
                         Shape{"scan B8 D5120 L2048 N64", 8, 2048, 5120, 64, Memory::kInitial},
                         Shape{"scan B8 D5120 L2048 N128", 8, 2048, 5120, 128, Memory::kInitial},
                         Shape{"scan B8 D5120 L2048 N256", 8, 2048, 5120, 256, Memory::kInitial}}) {
    if (bench.wants(s.name)) Scan(s.B, s.L, s.E, s.N, s.memory).run(bench, s.name);
  }
}

// Decode steps, in a graph whose calls take turns among several sets, so that states come from memory and not from L2.
int sets_for(double bytes) { return static_cast<int>(std::max(1.0, std::min(64.0, 2.5e8 / bytes))); }

void scan_steps(Bench& bench) {
  for (DType type : kStateTypes) {
    for (int64_t B : {1, 64, 256}) {
      const std::string name = "scan step B" + std::to_string(B) + " D5120 N16 (graph)" + states_of(type);
      if (!bench.wants(name)) continue;
      const double bytes = 2.0 * static_cast<double>(dtype_bytes(type, B * 5120 * 16));
      std::vector<std::unique_ptr<Scan>> sets;
      for (int i = 0; i < sets_for(bytes); ++i) {
        sets.push_back(std::make_unique<Scan>(B, 1, 5120, 16, Memory::kInitial, type));
      }
      const double e = sets[0]->error(bench.timer.stream());
      bench.table.add(name, bench.timer.time_in_graph([&](int i) {
        cuda::selective_scan(sets[i % sets.size()]->args, bench.timer.stream());
      }, 64), bytes, e);
    }
  }
}

struct SsdStep {
  static constexpr int64_t H = 80, P = 64, N = 128;
  int64_t B;
  GpuArray x, dt, A, Bs, Cs, D, bias, states, out;
  std::unique_ptr<GpuArray> items;
  cuda::SsdArgs args;

  SsdStep(int64_t B, DType state_type)
      : B(B), x(kType, B * H * P, -1, 1), dt(kType, B * H, -3, 1), A(DType::kF32, H, -4, -1), Bs(kType, B * N, -1, 1),
        Cs(kType, B * N, -1, 1), D(DType::kF32, H, -1, 1), bias(DType::kF32, H, -1, 1),
        states(state_type, B * H * P * N, -1, 1), out(kType, B * H * P), items(segments_of(B, 1)) {
    args = {kType, x.data(), H * P, dt.data(), H, A.floats(), Bs.data(), Cs.data(), N, D.floats(), bias.floats(), true,
            0, std::numeric_limits<float>::infinity(), view(*items, B, 1), H, P, N, 1, states.data(), H * P * N,
            out.data(), H * P, {}, state_type};
  }

  double error(cudaStream_t stream) {
    const int64_t b = B - 1, size = H * P * N;
    std::vector<float> state = states.columns(B * size, b * size, size), want(H * P);
    cuda::ssd_step(args, stream);
    check(cudaStreamSynchronize(stream), "ssd_step");
    const auto hx = x.columns(B * H * P, b * H * P, H * P), hdt = dt.columns(B * H, b * H, H), hA = A.columns(H, 0, H),
               hB = Bs.columns(B * N, b * N, N), hC = Cs.columns(B * N, b * N, N), hD = D.columns(H, 0, H),
               hb = bias.columns(H, 0,
               H);
    reference::ssd_step({hx.data(), H * P, hdt.data(), H, hA.data(), hB.data(), hC.data(), N, hD.data(), hb.data(),
                         true,
                         0, std::numeric_limits<float>::infinity(), 1, H, P, N, 1, 1, state.data(), want.data(), H * P},
                        {0, 1, nullptr, 0});
    const double of_state = relative_error(states.columns(B * size, b * size, size), state.data());
    if (!(of_state < allowed(args.state_type, 1e-5))) std::printf("state off by %.1e\n", of_state);
    return std::max(of_state, relative_error(out.columns(B * H * P, b * H * P, H * P), want.data()));
  }
};

void ssd_steps(Bench& bench) {
  for (DType type : kStateTypes) {
    for (int64_t B : {1, 8, 64, 256}) {
      const std::string name = "ssd step B" + std::to_string(B) + " H80 P64 N128 (graph)" + states_of(type);
      if (!bench.wants(name)) continue;
      const double bytes = 2.0 * static_cast<double>(dtype_bytes(type, B * SsdStep::H * SsdStep::P * SsdStep::N));
      std::vector<std::unique_ptr<SsdStep>> sets;
      for (int i = 0; i < sets_for(bytes); ++i) sets.push_back(std::make_unique<SsdStep>(B, type));
      const double e = sets[0]->error(bench.timer.stream());
      const auto time = [&](const std::string& label, size_t among) {
        bench.table.add(label, bench.timer.time_in_graph([&](int i) {
          cuda::ssd_step(sets[i % among]->args, bench.timer.stream());
        }, 64), bytes, e);
      };
      time(name, sets.size());
      if (B == 1) time(name + ", in L2", 1);
    }
  }
}

void convolutions(Bench& bench) {
  const int64_t C = 5376, K = 4;
  for (const auto& [B, L] : {std::pair<int64_t, int64_t>{8, 2048}, {1, 2048}, {1, 1}, {64, 1}, {256, 1}}) {
    const std::string name =
        "conv1d B" + std::to_string(B) + " D5376 L" + std::to_string(L) + (L == 1 ? " (graph)" : "");
    if (!bench.wants(name)) continue;
    const GpuArray x(kType, B * L * C, -1, 1), w(DType::kF32, K * C, -1, 1), b(DType::kF32, C, -1, 1),
        out(kType, B * L * C), windows(DType::kF32, B * (K - 1) * C, -1, 1);
    const auto items = segments_of(B, L);
    const cuda::Conv1dArgs args = {kType, x.data(), C, w.floats(), b.floats(), windows.floats(), (K - 1) * C,
                                   view(*items, B, L), C, K, true, out.data(), C};
    std::vector<float> window = windows.columns(B * (K - 1) * C, 0, (K - 1) * C), want(L * C);
    cuda::conv1d(args, bench.timer.stream());
    check(cudaStreamSynchronize(bench.timer.stream()), "conv1d");
    const auto hx = x.columns(B * L * C, 0, L * C), hw = w.columns(K * C, 0, K * C), hb = b.columns(C, 0, C);
    reference::conv1d({hx.data(), C, hw.data(), hb.data(), window.data(), L, C, K, true, want.data(), C},
                      {0, 1, nullptr, 0});
    const double e = relative_error(out.columns(B * L * C, 0, L * C), want.data());
    const auto work = [&](int) { cuda::conv1d(args, bench.timer.stream()); };
    const double bytes = L == 1 ? B * C * (4.0 + 8 * (K - 1)) : 4.0 * B * L * C;
    bench.table.add(name, L == 1 ? bench.timer.time_in_graph(work, 64) : bench.timer.time(work), bytes, e);
  }
}

void norms(Bench& bench) {
  struct Shape {
    const char* name;
    int64_t T, D;
    bool residual, gate, graph;
  };
  for (const Shape& s : {Shape{"rms_norm + residual T16384 D2560", 16384, 2560, true, false, false},
                         Shape{"rms_norm gated T16384 D5120", 16384, 5120, false, true, false},
                         Shape{"rms_norm + residual T1 D2560 (graph)", 1, 2560, true, false, true},
                         Shape{"rms_norm + residual T64 D2560 (graph)", 64, 2560, true, false, true},
                         Shape{"rms_norm gated T64 D5120 (graph)", 64, 5120, false, true, true}}) {
    if (!bench.wants(s.name)) continue;
    const GpuArray x(kType, s.T * s.D, -1, 1), gate(kType, s.T * s.D, -2, 2), residual(DType::kF32, s.T * s.D, -1, 1),
        weight(DType::kF32, s.D, -1, 1), out(kType, s.T * s.D);
    const cuda::RmsNormArgs args = {kType, x.data(), s.D, s.residual ? residual.floats() : nullptr,
                                    s.gate ? gate.data() : nullptr, s.D, weight.floats(), 1e-5f, s.T, s.D, 1,
                                    out.data(), s.D};
    const int64_t last = (s.T - 1) * s.D;
    const auto row = [&](const GpuArray& v) { return v.columns(s.T * s.D, last, s.D); };
    std::vector<float> input = row(s.residual ? residual : x), want(s.D);
    cuda::rms_norm(args, bench.timer.stream());
    check(cudaStreamSynchronize(bench.timer.stream()), "rms_norm");
    const auto hx = row(x), hg = row(gate), hw = weight.columns(s.D, 0, s.D);
    reference::rms_norm({input.data(), s.D, s.residual ? hx.data() : nullptr, s.D, s.gate ? hg.data() : nullptr, s.D,
                         hw.data(), 1e-5f, 1, s.D, 1, want.data(), s.D},
                        {0, 1, nullptr, 0});
    const double e = relative_error(row(out), want.data());
    const auto work = [&](int) { cuda::rms_norm(args, bench.timer.stream()); };
    bench.table.add(s.name, s.graph ? bench.timer.time_in_graph(work, 64) : bench.timer.time(work),
                    s.T * s.D * (s.residual ? 12.0 : 6.0), e);
  }
}

// Tokens from logits that are uniform over 20, of which top-p 0.95 keeps about 7,500 of 50,280. The error is the share of
// the first rows whose token is not the reference's.
void samples(Bench& bench) {
  constexpr int64_t V = 50280, kRecent = 64;
  const m4j_sampling greedy = {sizeof greedy, 0, 0, 0, 0, 0, 1, 0, 1, nullptr, 0};
  m4j_sampling plain = greedy, top_p = greedy, all = greedy;
  plain.temperature = top_p.temperature = all.temperature = 1;
  top_p.top_p = all.top_p = 0.95f;
  all.top_k = 50, all.min_p = 0.01f, all.repetition_penalty = 1.1f;
  struct Kind {
    const char* name;
    const m4j_sampling& sampling;
    bool log_prob;
  };
  for (const Kind& kind : {Kind{"greedy", greedy, false}, Kind{"temperature", plain, true}, Kind{"top-p 0.95", top_p, true},
                           Kind{"top-k 50, top-p, min-p, penalty", all, true}}) {
    for (int64_t B : {1, 64, 256}) {
      const std::string name = "sample B" + std::to_string(B) + " V50280, " + kind.name + " (graph)";
      if (!bench.wants(name)) continue;
      const GpuArray logits(DType::kF32, B * V, -10, 10);
      SampleItem* items = nullptr;
      SampleResult* results = nullptr;
      int32_t* recent = nullptr;
      check(cudaMallocHost(&items, static_cast<size_t>(B) * sizeof(SampleItem)), "cudaMallocHost");
      check(cudaMallocHost(&results, static_cast<size_t>(B) * sizeof(SampleResult)), "cudaMallocHost");
      check(cudaMallocHost(&recent, static_cast<size_t>(B * kRecent) * sizeof(int32_t)), "cudaMallocHost");
      for (int64_t i = 0; i < B * kRecent; ++i) recent[i] = static_cast<int32_t>(i * 7919 % V);
      for (int64_t b = 0; b < B; ++b) {
        m4j_sampling s = kind.sampling;
        s.seed = static_cast<uint64_t>(b);
        s.recent = recent + b * kRecent, s.n_recent = kRecent;
        items[b] = sample_item(s, b, V, kind.log_prob);
      }
      const cuda::SampleArgs args = {logits.floats(), V, V, items, B, results};
      cuda::sample(args, bench.timer.stream());
      check(cudaStreamSynchronize(bench.timer.stream()), "sample");
      const int64_t checked = std::min<int64_t>(B, 8);
      const std::vector<float> host = logits.columns(V, 0, V);
      std::vector<SampleResult> want(static_cast<size_t>(checked));
      std::vector<double> scratch(static_cast<size_t>(reference::sample_scratch(V) / 2 + 1));
      reference::sample({host.data(), V, items, checked, want.data()}, {0, 1, reinterpret_cast<float*>(scratch.data()), 0});
      double wrong = 0;
      for (int64_t b = 0; b < checked; ++b) wrong += results[b].token != want[static_cast<size_t>(b)].token;
      bench.table.add(name, bench.timer.time_in_graph([&](int) { cuda::sample(args, bench.timer.stream()); }, 16), 4.0 * B * V,
                      wrong / static_cast<double>(checked));
      cudaFreeHost(items);
      cudaFreeHost(results);
      cudaFreeHost(recent);
    }
  }
}

void softmaxes(Bench& bench) {
  for (int64_t T : {1, 256}) {
    const int64_t n = 50280;
    const std::string name = "softmax T" + std::to_string(T) + " V50280 (graph)";
    if (!bench.wants(name)) continue;
    const GpuArray x(kType, T * n, -8, 8), out(DType::kF32, T * n);
    const cuda::SoftmaxArgs args = {kType, x.data(), n, T, n, out.floats(), n, false};
    cuda::softmax(args, bench.timer.stream());
    check(cudaStreamSynchronize(bench.timer.stream()), "softmax");
    const auto hx = x.columns(T * n, (T - 1) * n, n);
    std::vector<float> want(n);
    reference::softmax({hx.data(), n, 1, n, want.data(), n}, {0, 1, nullptr, 0});
    const double e = relative_error(out.columns(T * n, (T - 1) * n, n), want.data());
    bench.table.add(name, bench.timer.time_in_graph([&](int) { cuda::softmax(args, bench.timer.stream()); }, 16),
                    6.0 * T * n, e);
  }
}

}  // namespace
}  // namespace m4j::bench

int main(int argc, char** argv) {
  try {
    m4j::bench::Bench bench;
    if (argc > 1) bench.filter = argv[1];
    bench.table.note("device copy, read and written: " +
                     std::to_string(static_cast<int>(m4j::bench::copy_ceiling(bench.timer))) + " GB/s");
    m4j::bench::scans(bench);
    m4j::bench::scan_steps(bench);
    m4j::bench::ssd_steps(bench);
    m4j::bench::convolutions(bench);
    m4j::bench::norms(bench);
    m4j::bench::softmaxes(bench);
    m4j::bench::samples(bench);
    bench.table.print();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "m4j-gpu-bench-scan: %s\n", e.what());
    return 1;
  }
}
