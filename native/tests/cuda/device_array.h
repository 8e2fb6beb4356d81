// Arrays in GPU memory for tests: between guard zones that betray writes past the ends, poisoned with NaN patterns
// until written, in the dtype of a test.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/half.h"
#include "ops/ops.h"

namespace m4j::cuda::test {

inline void must(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// `values` rounded to dtype and back: what a kernel sees, and what the reference must be given.
inline std::vector<float> rounded(std::vector<float> values, DType dtype) {
  for (float& v : values) {
    if (dtype == DType::kF16) v = f16_to_f32(f32_to_f16(v));
    if (dtype == DType::kBF16) v = bf16_to_f32(f32_to_bf16(v));
  }
  return values;
}

// [rows, cols] of dtype with row stride ld >= cols; the gaps between rows stay poisoned and are checked.
class DeviceArray {
 public:
  // Poisoned: an output.
  DeviceArray(DType dtype, int64_t rows, int64_t cols, int64_t ld = 0)
      : dtype_(dtype), rows_(rows), cols_(cols), ld_(ld == 0 ? cols : ld), bytes_(dtype_bytes(dtype, rows * ld_)) {
    must(cudaMalloc(&base_, static_cast<size_t>(bytes_ + 2 * kGuard)));
    must(cudaMemset(base_, 0xFF, static_cast<size_t>(bytes_ + 2 * kGuard)));  // NaN in all three types
  }
  DeviceArray(DType dtype, const std::vector<float>& values, int64_t cols, int64_t ld = 0)
      : DeviceArray(dtype, static_cast<int64_t>(values.size()) / cols, cols, ld) {
    write(values);
  }
  DeviceArray(DeviceArray&& o) noexcept
      : dtype_(o.dtype_), rows_(o.rows_), cols_(o.cols_), ld_(o.ld_), bytes_(o.bytes_), base_(o.base_) {
    o.base_ = nullptr;
  }
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() { cudaFree(base_); }

  void* data() const { return static_cast<char*>(base_) + kGuard; }
  float* floats() const { return static_cast<float*>(data()); }
  int64_t ld() const { return ld_; }

  void write(const std::vector<float>& values) {
    std::vector<unsigned char> host(static_cast<size_t>(bytes_), 0xFF);
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) store(host.data(), r * ld_ + c, values[static_cast<size_t>(r * cols_ + c)]);
    must(cudaMemcpy(data(), host.data(), host.size(), cudaMemcpyHostToDevice));
  }

  // The values; fails the test if anything outside them was written.
  std::vector<float> read() const {
    std::vector<unsigned char> host(static_cast<size_t>(bytes_ + 2 * kGuard));
    must(cudaMemcpy(host.data(), base_, host.size(), cudaMemcpyDeviceToHost));
    std::vector<float> values(static_cast<size_t>(rows_ * cols_));
    const int64_t size = dtype_bytes(dtype_, 1);
    int64_t overwritten = 0;
    for (int64_t i = 0; i < kGuard; ++i) overwritten += (host[i] != 0xFF) + (host[kGuard + bytes_ + i] != 0xFF);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < ld_; ++c) {
        const unsigned char* p = host.data() + kGuard + (r * ld_ + c) * size;
        if (c < cols_) {
          values[static_cast<size_t>(r * cols_ + c)] = load_f32(p, dtype_, 0);
        } else {
          for (int64_t b = 0; b < size; ++b) overwritten += p[b] != 0xFF;
        }
      }
    }
    EXPECT_EQ(overwritten, 0) << "bytes outside the array were written";
    return values;
  }

 private:
  static constexpr int64_t kGuard = 1024;
  void store(unsigned char* host, int64_t i, float v) const {
    const uint16_t half = dtype_ == DType::kF16 ? f32_to_f16(v) : f32_to_bf16(v);
    if (dtype_ == DType::kF32) {
      std::memcpy(host + 4 * i, &v, 4);
    } else {
      std::memcpy(host + 2 * i, &half, 2);
    }
  }

  const DType dtype_;
  const int64_t rows_, cols_, ld_, bytes_;
  void* base_ = nullptr;
};

}  // namespace m4j::cuda::test
