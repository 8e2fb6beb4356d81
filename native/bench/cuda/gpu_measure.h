// What the GPU benchmarks share: memory filled with random numbers, timing by events and by replayed graphs, the copy
// ceiling, one table.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "measure.h"
#include "ops/cuda/launch.cuh"
#include "ops/half.h"

namespace m4j::bench {

using cuda::check;

// Uniform in [low, high) for each element; a hash of its index and the seed.
template <typename T>
__global__ void fill_kernel(T* out, int64_t n, uint64_t seed, float low, float high) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    uint64_t v = (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9ull;
    v = (v ^ (v >> 27)) * 0x94D049BB133111EBull;
    v ^= v >> 31;
    out[i] = cuda::from_float<T>(low + (high - low) * static_cast<float>(v >> 40) * 0x1p-24f);
  }
}

// n elements of a dtype in GPU memory.
class GpuArray {
 public:
  GpuArray(DType dtype, int64_t n) : dtype_(dtype), n_(n) {
    check(cudaMalloc(&data_, static_cast<size_t>(std::max<int64_t>(1, dtype_bytes(dtype, n)))), "cudaMalloc");
  }
  GpuArray(DType dtype, int64_t n, float low, float high) : GpuArray(dtype, n) {
    static uint64_t seed = 1;
    cuda::with_element_type(dtype, [&]<typename T>(T) {
      fill_kernel<<<2048, 256>>>(static_cast<T*>(data_), n_, ++seed, low, high);
    });
    cuda::check_launch("fill");
  }
  GpuArray(const GpuArray&) = delete;
  GpuArray& operator=(const GpuArray&) = delete;
  ~GpuArray() { cudaFree(data_); }

  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }
  // Columns [first, first + count) of all rows of a matrix [n / cols, cols].
  std::vector<float> columns(int64_t cols, int64_t first, int64_t count) const {
    const size_t size = static_cast<size_t>(dtype_bytes(dtype_, 1)), width = size * count;
    std::vector<unsigned char> raw(static_cast<size_t>(n_ / cols) * width);
    check(cudaMemcpy2D(raw.data(), width, static_cast<char*>(data_) + size * first, size * cols, width,
                       static_cast<size_t>(n_ / cols), cudaMemcpyDeviceToHost),
          "cudaMemcpy2D");
    std::vector<float> values(static_cast<size_t>(n_ / cols * count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = load_f32(raw.data(), dtype_, static_cast<int64_t>(i));
    return values;
  }

 private:
  const DType dtype_;
  const int64_t n_;
  void* data_ = nullptr;
};

class GpuTimer {
 public:
  GpuTimer() {
    check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  cudaStream_t stream() const { return stream_; }

  // Microseconds of each call of work(i).
  Spread time(const std::function<void(int)>& work, int repeat = 25) const {
    std::vector<double> samples;
    for (int i = -3; i < repeat; ++i) {
      const double us = elapsed([&] { work(i + 3); });
      if (i >= 0) samples.push_back(us);
    }
    return spread_of(std::move(samples));
  }

  // Microseconds of one of `calls` calls of work(i) in a graph.
  Spread time_in_graph(const std::function<void(int)>& work, int calls, int repeat = 25) const {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < calls; ++i) work(i);
    check(cudaStreamEndCapture(stream_, &graph), "capture");
    check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    Spread s = time([&](int) { check(cudaGraphLaunch(exec, stream_), "launch"); }, repeat);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return {s.median / calls, s.min / calls, s.max / calls, s.samples};
  }

 private:
  template <typename Body>
  double elapsed(Body&& body) const {
    check(cudaEventRecord(begin_, stream_), "record");
    body();
    check(cudaEventRecord(end_, stream_), "record");
    check(cudaEventSynchronize(end_), "synchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin_, end_), "elapsed");
    return 1e3 * ms;
  }
  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
};

// GB/s of a device-to-device copy, read and written bytes counted.
inline double copy_ceiling(const GpuTimer& timer) {
  const int64_t bytes = int64_t{2} << 30;
  const GpuArray from(DType::kF32, bytes / 4, -1, 1), to(DType::kF32, bytes / 4);
  const Spread s = timer.time([&](int) {
    check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, timer.stream()), "copy");
  });
  return 2.0 * bytes / s.median / 1e3;
}

// Collects lines while work is done; the table comes last.
class Table {
 public:
  void add(const std::string& name, const Spread& us, double bytes, double error) {
    char line[256];
    std::snprintf(line, sizeof line, "%-44s %10.2f %10.2f %10.2f %8.0f %9.1e", name.c_str(), us.median, us.min, us.max,
                  bytes / us.median / 1e3, error);
    lines_.push_back(line);
  }
  void note(const std::string& line) { lines_.push_back(line); }
  void print() const {
    std::printf("%-44s %10s %10s %10s %8s %9s\n", "work", "median us", "min", "max", "GB/s", "error");
    for (const std::string& line : lines_) std::printf("%s\n", line.c_str());
  }

 private:
  std::vector<std::string> lines_;
};

}  // namespace m4j::bench
