#include "cuda/transfers.h"

#include <algorithm>
#include <cstring>

namespace m4j::cuda {
namespace {

void copy_async(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind, stream), "copy over the bus");
}

}  // namespace

Transfers::~Transfers() {
  for (Half& half : halves_) {
    if (half.done == nullptr) continue;
    cudaEventSynchronize(half.done);
    cudaEventDestroy(half.done);
  }
}

Transfers::Half& Transfers::next_half() {
  // Both before the first is used, or a copy could fail when its beginning has arrived.
  for (Half& half : halves_) {
    if (half.memory.data() == nullptr) half.memory = PinnedBuffer(kHalf);
    if (half.done == nullptr) check(cudaEventCreateWithFlags(&half.done, cudaEventDisableTiming), "cudaEventCreate");
  }
  Half& half = halves_[next_];
  next_ = 1 - next_;
  check(cudaEventSynchronize(half.done), "copy over the bus");
  return half;
}

void Transfers::upload(void* device, const void* host, int64_t bytes, cudaStream_t stream) {
  for (int64_t i = 0; i < bytes; i += kHalf) {
    const int64_t count = std::min(kHalf, bytes - i);
    Half& half = next_half();
    std::memcpy(half.memory.data(), static_cast<const char*>(host) + i, static_cast<std::size_t>(count));
    copy_async(static_cast<char*>(device) + i, half.memory.data(), count, cudaMemcpyHostToDevice, stream);
    check(cudaEventRecord(half.done, stream), "cudaEventRecord");
  }
}

void Transfers::download(void* host, const void* device, int64_t bytes, cudaStream_t stream) {
  Half* previous = nullptr;
  const auto finish = [&](int64_t end) {  // of the part in front of `end`
    if (previous == nullptr) return;
    const int64_t begin = (end - 1) / kHalf * kHalf;
    check(cudaEventSynchronize(previous->done), "copy over the bus");
    std::memcpy(static_cast<char*>(host) + begin, previous->memory.data(), static_cast<std::size_t>(end - begin));
  };
  for (int64_t i = 0; i < bytes; i += kHalf) {
    Half& half = next_half();
    copy_async(half.memory.data(), static_cast<const char*>(device) + i, std::min(kHalf, bytes - i),
               cudaMemcpyDeviceToHost, stream);
    check(cudaEventRecord(half.done, stream), "cudaEventRecord");
    finish(i);
    previous = &half;
  }
  finish(bytes);
}

}  // namespace m4j::cuda
