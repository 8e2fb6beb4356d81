// One GPU: its stream, matrix product algorithms and the workspace that calls use one after the other.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/choices.h"
#include "cuda/cuda_api.h"
#include "cuda/memory.h"
#include "cuda/transfers.h"
#include "ops/cuda/gemm.h"

namespace m4j::cuda {

class Engine {
  const int ordinal_;  // selects the device on which all the others are made

 public:
  explicit Engine(int ordinal);  // throws Failure if the device cannot be used
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  void use() const { check(cudaSetDevice(ordinal_), "cudaSetDevice"); }
  void wait() const { check(cudaStreamSynchronize(stream), "computing on the GPU"); }
  // Until what a kernel of the stream sets in page-locked memory is not zero any more, 2 us before wait() would return. The
  // kernel may still be ending; what follows on the stream waits for that.
  void wait_for(const unsigned* flag) const;
  DeviceInfo info() const;
  int ordinal() const { return ordinal_; }

  // Room of at least `bytes`, kept for later calls; contents are undefined. It moves when it grows.
  char* workspace(int64_t bytes);
  int64_t workspace_moves = 0;  // so far; one that has moved may lie at an old address again

  int64_t bytes = 0;         // of GPU memory, of the engine and all that was made from it
  int64_t memory_bytes = 0;  // of the whole card
  cudaStream_t stream = nullptr;
  Gemm gemm;
  Transfers transfers;
  Choices choices;  // of m4j_sample

 private:
  DeviceBuffer workspace_;
};

}  // namespace m4j::cuda
