// ssd_chunk on this GPU: each shape is first compared with the recurrence in float64 on some heads, then timed.
//   m4j-gpu-bench-ssd [part of a name ...]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"

namespace m4j::cuda::bench {
namespace {

constexpr int kWarmUps = 3, kRepeats = 21;
constexpr int64_t kCacheBytes = 60'000'000;

struct Memory {
  explicit Memory(int64_t bytes) : bytes(bytes) {
    check(cudaMalloc(&data, static_cast<size_t>(std::max<int64_t>(bytes, 16))), "cudaMalloc");
  }
  Memory(const Memory&) = delete;
  ~Memory() { cudaFree(data); }
  float* floats() const { return static_cast<float*>(data); }
  int64_t bytes;
  void* data = nullptr;
};

// Uniform in [low, high): a hash of the index.
template <typename T>
__global__ void fill_kernel(T* out, int64_t n, uint32_t seed, float low, float high) {
  for (int64_t i = blockIdx.x * int64_t{256} + threadIdx.x; i < n; i += gridDim.x * int64_t{256}) {
    uint64_t z = (static_cast<uint64_t>(i) + (static_cast<uint64_t>(seed) << 40)) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    out[i] = from_float<T>(low + (high - low) * static_cast<float>((z >> 40) & 0xFFFFFF) * 0x1p-24f);
  }
}
void fill(const Memory& m, DType dtype, float low, float high) {
  static uint32_t seed = 0;
  with_element_type(dtype, [&]<typename T>(T) {
    const int64_t count = m.bytes / static_cast<int64_t>(sizeof(T));
    fill_kernel<T><<<1024, 256>>>(static_cast<T*>(m.data), count, ++seed, low, high);
  });
  check_launch("fill");
}

// A warp computes one row p of one head of one sequence token by token, and adds up errors[0] += |out - y|^2,
// [1] += |y|^2, and the same of its state in [2] and [3].
template <typename T>
__global__ void check_kernel(const SsdArgs a, const float* before, int64_t segment, int64_t head, double* errors) {
  const Segment seg = a.segments.items[segment];
  const int64_t p = blockIdx.x, lane = threadIdx.x, group = head / (a.heads / a.n_groups);
  const int64_t slot = seg.slot * a.slot_stride + (head * a.headdim + p) * a.d_state;
  double h[8] = {};
  for (int k = 0; k < 8; ++k)
    if (lane + 32 * k < a.d_state) h[k] = before[slot + lane + 32 * k];
  double error = 0, norm = 0;
  for (int64_t t = seg.row; t < seg.row + seg.tokens; ++t) {
    const double x = to_float(static_cast<const T*>(a.x)[t * a.ld_x + head * a.headdim + p]);
    const double raw = to_float(static_cast<const T*>(a.dt)[t * a.ld_dt + head]) + a.dt_bias[head];
    const double dt = log1p(exp(raw)), decay = exp(dt * a.A[head]);
    double y = lane == 0 ? a.D[head] * x : 0;
    for (int k = 0; k < 8; ++k) {
      if (lane + 32 * k >= a.d_state) break;
      const int64_t bc = t * a.ld_bc + group * a.d_state + lane + 32 * k;
      h[k] = decay * h[k] + dt * x * to_float(static_cast<const T*>(a.B)[bc]);
      y += h[k] * to_float(static_cast<const T*>(a.C)[bc]);
    }
    for (int offset = 16; offset > 0; offset /= 2) y += __shfl_xor_sync(~0u, y, offset);
    const int64_t col = head * a.headdim + p;
    if (a.z) {
      const double z = to_float(static_cast<const T*>(a.z)[t * a.ld_z + col]);
      y *= z / (1 + exp(-z)) * a.norm_weight[col];
    }
    const double d = to_float(static_cast<const T*>(a.out)[t * a.ld_out + col]) - y;
    error += d * d;
    norm += y * y;
  }
  if (lane == 0) {
    atomicAdd(&errors[0], error);
    atomicAdd(&errors[1], norm);
  }
  for (int k = 0; k < 8; ++k) {
    if (lane + 32 * k >= a.d_state) break;
    const double d = static_cast<const float*>(a.states)[slot + lane + 32 * k] - h[k];
    atomicAdd(&errors[2], d * d);
    atomicAdd(&errors[3], h[k] * h[k]);
  }
}

struct Case {
  const char* name;
  DType dtype;
  int64_t batch, tokens, heads, headdim, d_state, n_groups;
  double goal_ms;
  bool gate = false;
  bool endless = false;  // nothing is forgotten: the worst case of parts of a sequence
};

struct Times {
  float median, min, max;
};

template <typename Run>
Times time(Run&& run) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times;
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    float ms;
    check(cudaEventRecord(begin), "cudaEventRecord");
    run(i);
    check(cudaEventRecord(end), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (i >= kWarmUps) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

double copy_rate() {
  const Memory from(2'000'000'000), to(2'000'000'000);
  fill(from, DType::kF32, -1, 1);
  const Times t = time([&](int) { cudaMemcpyAsync(to.data, from.data, from.bytes, cudaMemcpyDeviceToDevice); });
  return 2 * static_cast<double>(from.bytes) / t.median * 1e3;
}

struct Inputs {
  Inputs(const Case& c)
      : x(dtype_bytes(c.dtype, c.batch * c.tokens * c.heads * c.headdim)),
        dt(dtype_bytes(c.dtype, c.batch * c.tokens * c.heads)),
        B(dtype_bytes(c.dtype, c.batch * c.tokens * c.n_groups * c.d_state)),
        C(B.bytes),
        z(c.gate ? x.bytes : 0),
        out(x.bytes) {
    fill(x, c.dtype, -1.7f, 1.7f);
    fill(dt, c.dtype, -2, 2);
    fill(B, c.dtype, -1.7f, 1.7f);
    fill(C, c.dtype, -1.7f, 1.7f);
    if (c.gate) fill(z, c.dtype, -3, 3);
    check(cudaMemset(out.data, 0xFF, out.bytes), "cudaMemset");
  }
  int64_t bytes() const { return x.bytes + dt.bytes + B.bytes + C.bytes + z.bytes + out.bytes; }
  Memory x, dt, B, C, z, out;
};

void measure(const Case& c, double copy, std::string* table) {
  std::vector<std::unique_ptr<Inputs>> sets;
  sets.push_back(std::make_unique<Inputs>(c));
  while (static_cast<int64_t>(sets.size()) * sets[0]->bytes() < 4 * kCacheBytes)
    sets.push_back(std::make_unique<Inputs>(c));
  const Memory A(4 * c.heads), D(4 * c.heads), bias(4 * c.heads), weight(4 * c.heads * c.headdim);
  const Memory squares(c.gate ? 4 * c.batch * c.tokens * ssd_chunk_squares(c.heads, c.headdim) : 0);
  fill(A, DType::kF32, c.endless ? -1e-5f : -8, c.endless ? -1e-6f : -0.5f);
  fill(D, DType::kF32, -1, 1);
  fill(bias, DType::kF32, -6, -2);
  fill(weight, DType::kF32, 0.5f, 1.5f);
  const int64_t slot = c.heads * c.headdim * c.d_state;
  const Memory states(4 * c.batch * slot), before(states.bytes), errors(4 * sizeof(double));
  fill(states, DType::kF32, -1, 1);
  check(cudaMemcpy(before.data, states.data, states.bytes, cudaMemcpyDeviceToDevice), "cudaMemcpy");
  std::vector<Segment> items;
  for (int64_t b = 0; b < c.batch; ++b) items.push_back({b * c.tokens, c.tokens, c.batch - 1 - b});
  const Memory items_memory(static_cast<int64_t>(items.size() * sizeof(Segment)));
  check(cudaMemcpy(items_memory.data, items.data(), items_memory.bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  const Segments segments = {static_cast<const Segment*>(items_memory.data), c.batch, c.batch * c.tokens, c.tokens};
  const Memory workspace(ssd_chunk_workspace(c.heads, c.headdim, c.d_state, c.n_groups, segments));
  check(cudaMemset(workspace.data, 0xFF, std::max<int64_t>(workspace.bytes, 16)), "cudaMemset");
  const auto args = [&](const Inputs& i) {
    const int64_t ld_x = c.heads * c.headdim, ld_bc = c.n_groups * c.d_state;
    SsdArgs args = {c.dtype, i.x.data, ld_x, i.dt.data, c.heads, A.floats(), i.B.data, i.C.data, ld_bc, D.floats(),
                    bias.floats(), true, 0, std::numeric_limits<float>::infinity(), segments, c.heads, c.headdim,
                    c.d_state,
                    c.n_groups, states.floats(), slot, i.out.data, ld_x, {workspace.data, workspace.bytes}};
    if (c.gate) {
      args.z = i.z.data;
      args.ld_z = ld_x;
      args.norm_weight = weight.floats();
      args.squares = squares.floats();
    }
    return args;
  };
  if (c.gate && !ssd_chunk_gates(args(*sets[0]))) return;

  ssd_chunk(args(*sets[0]), nullptr);
  check(cudaMemset(errors.data, 0, errors.bytes), "cudaMemset");
  const std::pair<int64_t, int64_t> samples[] = {{0, 0}, {c.batch / 2, c.heads / 2}, {c.batch - 1, c.heads - 1}};
  for (const auto& [sequence, head] : samples) {
    with_element_type(c.dtype, [&]<typename T>(T) {
      check_kernel<T><<<static_cast<unsigned>(c.headdim), 32>>>(args(*sets[0]), before.floats(), sequence, head,
                                                                static_cast<double*>(errors.data));
    });
    check_launch("check");
  }
  double e[4];
  check(cudaMemcpy(e, errors.data, sizeof(e), cudaMemcpyDeviceToHost), "cudaMemcpy");
  const double out_error = std::sqrt(e[0] / e[1]), state_error = std::sqrt(e[2] / e[3]);
  const double allowed = c.dtype == DType::kF32 ? 1e-5 : 1e-2;
  const bool right = out_error <= allowed && state_error <= allowed;

  const Times t = time([&](int i) { ssd_chunk(args(*sets[static_cast<size_t>(i) % sets.size()]), nullptr); });
  const double bytes = static_cast<double>(sets[0]->bytes() + 2 * states.bytes);
  char line[256];
  std::snprintf(line, sizeof(line), "%-26s %8.3f %8.3f %8.3f %8.3f %7.3f %9.1e %9.1e %s\n", c.name, t.median, t.min,
                t.max, c.goal_ms, bytes / copy * 1e3, out_error, state_error, right ? "" : "WRONG");
  *table += line;
}

int run(int argc, char** argv) {
  constexpr DType kB = DType::kBF16, kH = DType::kF16, kF = DType::kF32;
  const Case cases[] = {
      {"B8 L2048 H80 P64 N128", kB, 8, 2048, 80, 64, 128, 1, 0.37},
      {"B8 L2048 gate", kB, 8, 2048, 80, 64, 128, 1, 0, true},
      {"B1 L2048 gate", kB, 1, 2048, 80, 64, 128, 1, 0, true},
      {"B1 L512 gate", kB, 1, 512, 80, 64, 128, 1, 0, true},
      {"B64 L256 gate", kB, 64, 256, 80, 64, 128, 1, 0, true},
      {"B1 L2048", kB, 1, 2048, 80, 64, 128, 1, 0.10},
      {"B1 L512", kB, 1, 512, 80, 64, 128, 1, 0},
      {"B1 L16384", kB, 1, 16384, 80, 64, 128, 1, 0},
      {"B1 L131072", kB, 1, 131072, 80, 64, 128, 1, 2.2},
      {"B1 L131072 endless memory", kB, 1, 131072, 80, 64, 128, 1, 0, false, true},
      {"B1 L2048 endless memory", kB, 1, 2048, 80, 64, 128, 1, 0, false, true},
      {"B8 L2048 N16", kB, 8, 2048, 80, 64, 16, 1, 0},
      {"B8 L2048 N64", kB, 8, 2048, 80, 64, 64, 1, 0},
      {"B8 L2048 N256", kB, 8, 2048, 80, 64, 256, 1, 0},
      {"B8 L2048 H40 P128", kB, 8, 2048, 40, 128, 128, 1, 0},
      {"B8 L2048 H128 G8", kB, 8, 2048, 128, 64, 128, 8, 0},
      {"B64 L256", kB, 64, 256, 80, 64, 128, 1, 0},
      {"B2 L2048 H24 (130m)", kB, 2, 2048, 24, 64, 128, 1, 0},
      {"B8 L2048 f16", kH, 8, 2048, 80, 64, 128, 1, 0.37},
      {"B8 L2048 f32", kF, 8, 2048, 80, 64, 128, 1, 0},
  };
  const double copy = copy_rate();
  std::string table = "device copy " + std::to_string(static_cast<int>(copy / 1e9)) + " GB/s (read + write)\n";
  table += "case                         median      min      max     goal   floor  error out     state   (ms)\n";
  for (const Case& c : cases) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; ++i) wanted = wanted || std::strstr(c.name, argv[i]) != nullptr;
    if (wanted) measure(c, copy, &table);
  }
  std::fputs(table.c_str(), stdout);
  return table.find("WRONG") == std::string::npos ? 0 : 1;
}

}  // namespace
}  // namespace m4j::cuda::bench

int main(int argc, char** argv) {
  try {
    return m4j::cuda::bench::run(argc, argv);
  } catch (const m4j::Failure& e) {
    std::fprintf(stderr, "%s\n", e.message);
    return 1;
  }
}
