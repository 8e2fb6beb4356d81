// Hopper's copies of boxes of a matrix into shared memory, and clusters of blocks that write into each other's (sm_90).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "ops/cuda/cluster.cuh"
#include "ops/cuda/wgmma.cuh"

namespace m4j::cuda {

// After barrier_init, so that copies and the other blocks of the cluster see the barriers.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// barrier_expect and fetch are called by whole warps, one lane of which acts: a branch that only one lane takes would
// cost a loop over lanes around each copy.
#define M4J_BY_ONE_LANE "{\n.reg .pred one;\nelect.sync _|one, 0xffffffff;\n@one "

// One arrival, and so many bytes by copies or by send(), which may have come before.
__device__ inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile(M4J_BY_ONE_LANE "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;\n}\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Before its first use, so that the use need not wait for it. By any thread.
__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// A box to shared memory; the barrier counts its bytes.
__device__ inline void fetch(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t barrier) {
  asm volatile(M4J_BY_ONE_LANE
               "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
               "[%4];\n}\n" ::"r"(to),
               "l"(&map), "r"(column), "r"(row), "r"(barrier)
               : "memory");
}
// For what is read once: other lines stay in the cache longer.
__device__ inline uint64_t read_once_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline void fetch(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t barrier,
                             uint64_t policy) {
  asm volatile(M4J_BY_ONE_LANE
               "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
               "[%1, {%2, %3}], [%4], %5;\n}\n" ::"r"(to),
               "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
               : "memory");
}

#undef M4J_BY_ONE_LANE

// The place in the shared memory of block `rank` of the cluster that `address` is in this one's.
__device__ inline uint32_t address_in_block(uint32_t address, int rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
// Two numbers to a place in a block of the cluster, whose barrier counts their bytes. Neither side needs a fence or a
// barrier of the cluster for them, but the block must have begun.
__device__ inline void send(uint32_t to, float a, float b, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to), "f"(a),
               "f"(b), "r"(barrier)
               : "memory");
}

// A meeting in two halves, which tells that all blocks have begun and published their barriers; what else they wrote
// is not made visible, as it is by cluster_meet(). No thread ends between the halves: whether the barrier counts it then
// is not to be relied on.
__device__ inline void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

}  // namespace m4j::cuda
