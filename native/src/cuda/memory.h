// GPU memory and page-locked host memory with an owner. Allocation throws Failure: M4J_ERR_OUT_OF_MEMORY names what was
// asked for and what is free.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "ops/cuda/check.h"

namespace m4j::cuda {

// Adds what is allocated to a count that outlives it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(int64_t bytes, const char* what, int64_t* count) : bytes_(bytes), count_(count) {
    if (bytes == 0) return;
    const cudaError_t error = cudaMalloc(&data_, static_cast<std::size_t>(bytes));
    if (error != cudaSuccess) {
      std::size_t free = 0, total = 0;
      cudaGetLastError();
      cudaMemGetInfo(&free, &total);
      if (error != cudaErrorMemoryAllocation) check(error, what);
      fail(M4J_ERR_OUT_OF_MEMORY, "%s: %.1f MB of GPU memory were asked for, %.1f of %.1f MB are free", what,
           static_cast<double>(bytes) / 1e6, static_cast<double>(free) / 1e6, static_cast<double>(total) / 1e6);
    }
    *count_ += bytes_;
  }
  ~DeviceBuffer() {
    if (data_ == nullptr) return;
    cudaFree(data_);
    *count_ -= bytes_;
  }
  DeviceBuffer(DeviceBuffer&& o) noexcept { swap(o); }
  DeviceBuffer& operator=(DeviceBuffer&& o) noexcept {
    swap(o);
    return *this;
  }
  char* data() const { return static_cast<char*>(data_); }
  int64_t bytes() const { return bytes_; }

  // Leaves the memory, still counted, to whoever calls take_over with it.
  void* give_up() { return std::exchange(data_, nullptr); }
  static DeviceBuffer take_over(void* data, int64_t bytes, int64_t* count) {
    DeviceBuffer buffer;
    buffer.data_ = data;
    buffer.bytes_ = bytes;
    buffer.count_ = count;
    return buffer;
  }

 private:
  void swap(DeviceBuffer& o) {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    std::swap(count_, o.count_);
  }
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  int64_t* count_ = nullptr;
};

class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(int64_t bytes) {
    const cudaError_t error = cudaMallocHost(&data_, static_cast<std::size_t>(bytes));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // not to be reported once more by the next call
      fail(M4J_ERR_OUT_OF_MEMORY, "%.1f MB of page-locked host memory were asked for, which the system does not give",
           static_cast<double>(bytes) / 1e6);
    }
    check(error, "cudaMallocHost");
  }
  ~PinnedBuffer() { cudaFreeHost(data_); }
  PinnedBuffer(PinnedBuffer&& o) noexcept { std::swap(data_, o.data_); }
  PinnedBuffer& operator=(PinnedBuffer&& o) noexcept {
    std::swap(data_, o.data_);
    return *this;
  }
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
};

constexpr int64_t kAlignment = 256;
inline int64_t align(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace m4j::cuda
