// Blocks of a cluster, which run at the same time and reach each other's shared memory. Before Hopper a block is alone.
#pragma once

#include <cstdint>

namespace m4j::cuda {

__device__ inline unsigned cluster_blocks() {
  unsigned n = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
#endif
  return n;
}

__device__ inline unsigned cluster_rank() {
  unsigned rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

// __syncthreads() of all blocks of the cluster. One warp makes what its block has written visible, for all of its warps:
// barrier.cluster.arrive.release would have each of them wait for the memory.
__device__ inline void cluster_meet() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __syncthreads();
  if (cluster_blocks() == 1) return;
  if (threadIdx.x < 32) asm volatile("fence.acq_rel.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The place in the shared memory of block `rank` of the cluster that `mine` is in this block's.
template <typename T>
__device__ T* of_block(T* mine, unsigned rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(reinterpret_cast<uint64_t>(mine)), "r"(rank));
  return reinterpret_cast<T*>(address);
#else
  return mine;
#endif
}

}  // namespace m4j::cuda
