// m4j-gpu-bench-models: whole models with random weights on a GPU, driven through the C ABI like a user's: prefill and
// decode, handing all logits or a token for each sequence to the host, or nothing ("no head"), each beside the time in
// which the card can read what the work needs.
//
//   m4j-gpu-bench-models [--f32] [--bf16-states] [--decode N,N,...] [MODEL...]
//
// --f32 takes weights, and so activations, of float32 instead of bfloat16;
// --bf16-states measures each model again with states in bfloat16, and how far its logits are from those of float32;
// --decode measures steps of these batches and nothing else.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "measure.h"
#include "random_model.h"

namespace m4j::bench {
namespace {

void must(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Milliseconds a call. Calls of a fifth of one say little one by one, and come before the card has reached its clocks.
template <typename Body>
Spread measure(std::size_t repeat, Body&& body) {
  constexpr double kLeast = 0.05;  // seconds
  double start = seconds();
  for (int i = 0; i < 3 || seconds() - start < kLeast; ++i) body();
  std::vector<double> ms;
  for (start = seconds(); ms.size() < repeat || seconds() - start < kLeast;) {
    const double begin = seconds();
    body();
    ms.push_back(1e3 * (seconds() - begin));
  }
  return spread_of(std::move(ms));
}

// Bytes a second of a large copy, reading and writing.
double copy_bandwidth() {
  constexpr std::size_t kBytes = std::size_t{2} << 30;
  void *from = nullptr, *to = nullptr;
  must(cudaMalloc(&from, kBytes));
  must(cudaMalloc(&to, kBytes));
  must(cudaMemset(from, 0x5a, kBytes));
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin));
  must(cudaEventCreate(&end));
  std::vector<float> ms;
  for (int i = 0; i < 12; ++i) {
    must(cudaEventRecord(begin));
    must(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice));
    must(cudaEventRecord(end));
    must(cudaEventSynchronize(end));
    ms.push_back(0);
    must(cudaEventElapsedTime(&ms.back(), begin, end));
  }
  cudaFree(from);
  cudaFree(to);
  std::sort(ms.begin(), ms.end());
  return 2.0 * kBytes / (ms[ms.size() / 2] * 1e-3);
}

std::vector<int32_t> tokens(int64_t count, int64_t vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>((i * 7919 + 13) % vocab));
  return ids;
}

void print(const std::string& model, const std::string& work, const Spread& t, double floor_ms) {
  std::printf("%-19s %-18s %9.3f ms (%.3f-%.3f)  floor %8.3f ms  %5.1f %%\n", model.c_str(), work.c_str(), t.median, t.min,
              t.max, floor_ms, 100 * floor_ms / t.median);
  std::fflush(stdout);
}

// Sums in another order, rounded to bfloat16 in each of up to 64 layers of random weights.
constexpr double kMaxBatchError = 0.08;

// A sequence in a batch must give what it gives alone: the norm of the difference of its logits, relative. Two steps of
// one token, after a prompt.
double batch_error(RandomModel& model, const std::vector<m4j_slot>& slots, int64_t prompt) {
  const auto n = static_cast<int64_t>(slots.size()), V = model.vocab_size();
  const std::vector<int32_t> ids = tokens(n * (prompt + 2), V);
  const auto last = [&](const std::vector<m4j_slot>& some, int64_t first) {  // logits of the last of `some`
    for (const m4j_slot slot : some) model.reset(slot);
    const auto part = [&](int64_t begin, int64_t end) {
      std::vector<int32_t> result;
      for (int64_t i = first; i < first + static_cast<int64_t>(some.size()); ++i) {
        result.insert(result.end(), ids.begin() + i * (prompt + 2) + begin, ids.begin() + i * (prompt + 2) + end);
      }
      return result;
    };
    model.advance(some, part(0, prompt), M4J_LOGITS_NONE);
    model.advance(some, part(prompt, prompt + 1), M4J_LOGITS_NONE);
    const float* logits = model.advance(some, part(prompt + 1, prompt + 2));
    return std::vector<float>(logits + (some.size() - 1) * V, logits + some.size() * V);
  };
  const std::vector<float> batch = last(slots, 0), alone = last({slots.back()}, n - 1);
  return relative_error(batch, alone.data());
}

// Steps of eight sequences through both models: how far the logits have come apart.
void compare_states(const char* name, RandomModel& narrow, RandomModel& wide) {
  constexpr int64_t kSequences = 8;
  std::vector<m4j_slot> narrow_slots, wide_slots;
  while (static_cast<int64_t>(wide_slots.size()) < kSequences) {
    narrow_slots.push_back(narrow.take());
    wide_slots.push_back(wide.take());
  }
  const int64_t V = wide.vocab_size(), checks[] = {1, 16, 256, 1024};
  const std::vector<int32_t> ids = tokens(checks[3] * kSequences, V);
  std::printf("%-19s logits away from those of float32 states:", name);
  for (int64_t step = 0, check = 0; step < checks[3]; ++step) {
    const std::vector<int32_t> some(ids.begin() + step * kSequences, ids.begin() + (step + 1) * kSequences);
    const bool look = step + 1 == checks[check];
    const float* exact = wide.advance(wide_slots, some, look ? M4J_LOGITS_LAST : M4J_LOGITS_NONE);
    const float* actual = narrow.advance(narrow_slots, some, look ? M4J_LOGITS_LAST : M4J_LOGITS_NONE);
    if (!look) continue;
    const double error = relative_error({actual, actual + kSequences * V}, exact);
    std::printf("  %.1e after %lld", error, static_cast<long long>(checks[check++]));
  }
  std::printf(" steps\n");
}

struct Options {
  int32_t dtype = M4J_BF16;
  bool bfloat16_states = false;
  std::vector<int64_t> decode;  // empty: the usual batches, and prefill
  std::vector<std::string> models;
};

void measure_model(const char* name, RandomModel& model, const Options& options, double bandwidth, double flops) {
  std::vector<m4j_slot> slots;
  while (slots.size() < 256) slots.push_back(model.take());
  const auto first = [&](int64_t n) { return std::vector<m4j_slot>(slots.begin(), slots.begin() + n); };
  for (const int64_t batch : {3, 40, 100, 256}) {
    const double error = batch_error(model, first(batch), 100);
    std::printf("%-19s a sequence in a batch of %lld and alone: %.1e\n", name, static_cast<long long>(batch), error);
    std::fflush(stdout);
    if (!(error < kMaxBatchError)) throw std::runtime_error("a sequence in a batch has other logits than alone");
  }
  const std::vector<int64_t> usual = {1, 2, 4, 8, 16, 64, 128, 256};
  for (const int64_t batch : options.decode.empty() ? usual : options.decode) {
    const std::vector<int32_t> ids = tokens(batch, model.vocab_size());
    const std::vector<m4j_slot> some = first(batch);
    const auto floor = [&](bool with_head) {
      return 1e3 / bandwidth * static_cast<double>(model.matrix_bytes(with_head) + 2 * batch * model.state_bytes());
    };
    print(name, "decode B" + std::to_string(batch), measure(20, [&] { model.advance(some, ids); }), floor(true));
    print(name, "  tokens", measure(20, [&] { model.next(some, ids, 1); }), floor(true));
    print(name, "  greedy", measure(20, [&] { model.next(some, ids, 0); }), floor(true));
    print(name, "  no head", measure(20, [&] { model.advance(some, ids, M4J_LOGITS_NONE); }), floor(false));
  }
  if (!options.decode.empty()) return;
  for (const auto& [batch, length] : std::vector<std::pair<int64_t, int64_t>>{{1, 512}, {1, 2048}, {8, 2048}}) {
    const std::vector<int32_t> ids = tokens(batch * length, model.vocab_size());
    const std::vector<m4j_slot> some = first(batch);
    print(name, "prefill B" + std::to_string(batch) + " L" + std::to_string(length),
          measure(7, [&] { model.advance(some, ids); }),
          model.projection_flops() * static_cast<double>(batch * length) / flops * 1e3);
  }
}

void run(const Shape& shape, const Options& options, double bandwidth, double flops) {
  RandomModel model(shape, options.dtype, 1, nullptr, 0);
  measure_model(shape.name, model, options, bandwidth, flops);
  if (!options.bfloat16_states) return;
  RandomModel narrow(model, 1, nullptr, 0, M4J_BF16);
  const std::string name = std::string(shape.name) + " bf16h";
  compare_states(name.c_str(), narrow, model);
  measure_model(name.c_str(), narrow, options, bandwidth, flops);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--bf16-states") {
      options.bfloat16_states = true;
    } else if (arg == "--f32") {
      options.dtype = M4J_F32;
    } else if (arg == "--decode" && i + 1 < argc) {
      for (const char* p = argv[++i]; *p != 0;) {
        char* end = nullptr;
        options.decode.push_back(std::strtoll(p, &end, 10));
        if (end == p || options.decode.back() < 1 || options.decode.back() > 256) {
          throw std::runtime_error("--decode takes batches of 1 ... 256, such as 64,128");
        }
        p = *end == ',' ? end + 1 : end;
      }
    } else if (arg.rfind("--", 0) == 0) {
      throw std::runtime_error("unknown option " + arg + " (only --f32, --bf16-states, --decode N,N)");
    } else {
      options.models.push_back(arg);
    }
  }
  if (options.models.empty()) options.models = {"mamba-130m", "mamba2-130m", "mamba-2.8b", "mamba2-2.7b"};
  return options;
}

}  // namespace
}  // namespace m4j::bench

int main(int argc, char** argv) {
  using namespace m4j::bench;
  try {
    const Options options = parse(argc, argv);
    const double bandwidth = copy_bandwidth();
    constexpr double kFlops = 750e12;  // a large bf16 product on this card
    std::printf("copy %.0f GB/s; floors: weights and states at that speed, projections at %.0f TFLOP/s\n", bandwidth / 1e9,
                kFlops / 1e12);
    for (const std::string& name : options.models) {
      const Shape* shape = find_shape(name);
      if (shape == nullptr) throw std::runtime_error("no shape is called " + name);
      run(*shape, options, bandwidth, kFlops);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "m4j-gpu-bench-models: %s\n", e.what());
    return 1;
  }
  return 0;
}
