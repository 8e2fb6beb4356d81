// Copies over the bus through page-locked memory: the card fetches one half while the processor fills the other. Memory
// of callers is not page-locked, and locking it costs more than most copies.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/memory.h"

namespace m4j::cuda {

class Transfers {
 public:
  Transfers() = default;
  ~Transfers();
  Transfers(const Transfers&) = delete;
  Transfers& operator=(const Transfers&) = delete;

  // `host` has been read when it returns; the copy takes its place on the stream.
  void upload(void* device, const void* host, int64_t bytes, cudaStream_t stream);
  // Waits for the stream; `host` is written when it returns.
  void download(void* host, const void* device, int64_t bytes, cudaStream_t stream);

 private:
  static constexpr int64_t kHalf = 4 << 20;
  struct Half {
    PinnedBuffer memory;
    cudaEvent_t done = nullptr;  // with the copy from or to it
  };
  // A half that no copy uses any more.
  Half& next_half();
  Half halves_[2];
  int next_ = 0;
};

}  // namespace m4j::cuda
