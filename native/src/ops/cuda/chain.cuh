// Kernels of a pass follow each other so closely that a launch and the first loads of a kernel take as long as its work.
// On Hopper and newer the blocks of a chained launch start while the kernel before still runs, as soon as all of its
// blocks have started and there is room: they fetch what no kernel of the pass writes, such as weights and states, and
// wait for that kernel to end before they touch anything else.
//
// Each kernel of a chain waits before it ends, so all kernels further back have ended too when a wait returns. A chain
// begins behind an ordinary launch or a copy, which wait for everything before them; what that launch itself writes may
// not be read before the wait either.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace m4j::cuda {

// By a thread of each block that may be the last to end: early, or, where the block keeps the memory busy by itself,
// when its last load is on its way.
__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Before a thread reads what other kernels of the pass write, or writes what they read.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Whether kernels were compiled for what the current device has since 9.0: waits, bulk copies. `kernel` is any of them.
bool can_wait(const void* kernel);

// Of the current device.
int device_attribute(cudaDeviceAttr which);

struct LaunchShape {
  int64_t blocks;
  unsigned threads;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks
  bool chained = true;   // the kernel waits
};

// kernel<<<...>>>(*args[0], ...), checked, the number of blocks too; `what` names it.
void launch_kernel(const char* what, const void* kernel, const LaunchShape& shape, cudaStream_t stream, void** args);

template <typename... Params>
void launch_kernel(const char* what, void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                   std::type_identity_t<Params>... args) {
  void* pointers[] = {&args...};
  launch_kernel(what, reinterpret_cast<const void*>(kernel), shape, stream, pointers);
}

}  // namespace m4j::cuda
