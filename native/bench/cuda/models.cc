// m4j-gpu-bench-models: whole models with random weights on a GPU, driven through the C ABI like a user's: prefill and
// decode, logits handed to the host included, each beside the time in which the card can read what the work needs.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "random_model.h"

namespace m4j::bench {
namespace {

void must(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

struct Times {
  double median, min, max;  // ms
};

template <typename Body>
Times measure(int repeat, Body&& body) {
  for (int i = 0; i < 3; ++i) body();
  std::vector<double> ms;
  for (int i = 0; i < repeat; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(ms.begin(), ms.end());
  return {ms[ms.size() / 2], ms.front(), ms.back()};
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

void print(const std::string& model, const std::string& work, const Times& t, double floor_ms) {
  std::printf("%-14s %-18s %9.3f ms (%.3f-%.3f)  floor %8.3f ms  %5.1f %%\n", model.c_str(), work.c_str(), t.median, t.min,
              t.max, floor_ms, 100 * floor_ms / t.median);
  std::fflush(stdout);
}

void run(const Shape& shape, int32_t dtype, double bandwidth, double flops) {
  RandomModel model(shape, dtype, 1, nullptr, 0);
  std::vector<m4j_slot> slots;
  while (slots.size() < 256) slots.push_back(model.take());
  const auto first = [&](int64_t n) { return std::vector<m4j_slot>(slots.begin(), slots.begin() + n); };
  for (const int64_t batch : {1, 2, 4, 8, 16, 64, 256}) {
    const std::vector<int32_t> ids = tokens(batch, model.vocab_size());
    const std::vector<m4j_slot> some = first(batch);
    const double bytes = static_cast<double>(model.matrix_bytes()) + 2.0 * static_cast<double>(batch * model.state_bytes());
    print(shape.name, "decode B" + std::to_string(batch), measure(20, [&] { model.advance(some, ids); }), bytes / bandwidth * 1e3);
    print(shape.name, "  tokens", measure(20, [&] { model.next(some, ids); }), bytes / bandwidth * 1e3);
    print(shape.name, "  no logits", measure(20, [&] { model.advance(some, ids, M4J_LOGITS_NONE); }), bytes / bandwidth * 1e3);
  }
  for (const auto& [batch, length] : std::vector<std::pair<int64_t, int64_t>>{{1, 512}, {1, 2048}, {8, 2048}}) {
    const std::vector<int32_t> ids = tokens(batch * length, model.vocab_size());
    const std::vector<m4j_slot> some = first(batch);
    print(shape.name, "prefill B" + std::to_string(batch) + " L" + std::to_string(length),
          measure(7, [&] { model.advance(some, ids); }),
          model.projection_flops() * static_cast<double>(batch * length) / flops * 1e3);
  }
}

}  // namespace
}  // namespace m4j::bench

int main(int argc, char** argv) {
  using namespace m4j::bench;
  try {
    std::vector<std::string> names(argv + 1, argv + argc);
    if (names.empty()) names = {"mamba-130m", "mamba2-130m", "mamba-2.8b", "mamba2-2.7b"};
    const double bandwidth = copy_bandwidth();
    constexpr double kFlops = 750e12;  // a large bf16 product on this card
    std::printf("copy %.0f GB/s; floors: weights and states at that speed, projections at %.0f TFLOP/s\n", bandwidth / 1e9,
                kFlops / 1e12);
    for (const std::string& name : names) {
      const Shape* shape = find_shape(name);
      if (shape == nullptr) throw std::runtime_error("no shape is called " + name);
      run(*shape, M4J_BF16, bandwidth, kFlops);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "m4j-gpu-bench-models: %s\n", e.what());
    return 1;
  }
  return 0;
}
