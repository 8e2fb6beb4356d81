// What a resident kernel reads from memory, streamed through shared memory: one warp of a block fetches rows in the order
// in which the others will need them, as far ahead as there is room, and waits for nobody but them; so the memory is
// busy while they meet other blocks.
#pragma once

#include <cstdint>

#include "ops/cuda/mma.cuh"

namespace m4j::cuda {

constexpr int kWarps = M4J_WARPS;        // that compute; one more fetches
constexpr int kMaxStages = 64;    // of the ring
constexpr int kMaxRowsShift = 4;  // log2 of the rows of a stage

// The part [begin, begin + count) of n items that this block works on.
struct Share {
  int begin, count;

  Share() = default;
  __device__ explicit Share(int n) : begin(bound(n, blockIdx.x)), count(bound(n, blockIdx.x + 1) - begin) {}

 private:
  static __device__ int bound(int n, unsigned block) { return static_cast<int>(static_cast<int64_t>(n) * block / gridDim.x); }
};

// Asks for memory that will be read soon, widened to what a prefetch can name: `p` lies in an array that begins and ends
// at multiples of 16 bytes.
__device__ inline void prefetch(const void* p, int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  const auto begin = reinterpret_cast<uint64_t>(p) & ~uint64_t{15};
  const auto end = (reinterpret_cast<uint64_t>(p) + static_cast<uint64_t>(bytes) + 15) & ~uint64_t{15};
  if (begin == end) return;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(begin), "r"(static_cast<uint32_t>(end - begin)) : "memory");
#endif
}

// Rows follow each other in a stage at half a line of banks more than whole lines, so that eight lanes that read 64
// bytes of each of two rows meet no bank twice.
__host__ __device__ inline int row_pitch(int row_bytes) { return (row_bytes + 63) / 128 * 128 + 64; }

// The next stage, and how often the ring has gone round.
struct RingPosition {
  int stage = 0;
  unsigned round = 0;
};

// Stages are handed back by all warps that compute, each of which first waits for all rows to have arrived, whether it
// reads them or not: otherwise it could hand back the same stage twice before another warp has once.
struct Ring {
  char* data;       // [stages, stage_bytes]
  uint64_t* full;   // [stages] mbarriers: the rows have arrived
  uint64_t* empty;  // [stages] mbarriers: all warps have used them
  int stages, stage_bytes;

  __device__ void init() const {
#if __CUDA_ARCH__ >= 900
    for (int i = static_cast<int>(threadIdx.x); i < stages; i += static_cast<int>(blockDim.x)) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(full + i)) : "memory");
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(empty + i)), "n"(kWarps) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    __syncthreads();
  }

  // Rows of a tile: what half of the ring holds, but no more than `most`.
  __device__ int tile_rows(int shift, int most) const { return min(stages / 2 << shift, most); }

  __device__ void advance(RingPosition& at, int count) const {
    at.stage += count;
    if (at.stage >= stages) {
      at.stage -= stages;
      ++at.round;
    }
  }

  // By one thread: `rows` rows that lie one after the other in memory, 1 << shift to a stage.
  __device__ void fetch(RingPosition& at, const char* from, int row_bytes, int rows, int shift) const {
#if __CUDA_ARCH__ >= 900
    const int pitch = row_pitch(row_bytes);
    for (int r = 0; r < rows; r += 1 << shift) {
      const int count = min(1 << shift, rows - r);
      wait(empty + at.stage, at.round + 1);
      const uint32_t barrier = shared_address(full + at.stage);
      uint32_t to = shared_address(data) + static_cast<uint32_t>(at.stage * stage_bytes);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(count * row_bytes) : "memory");
      for (int i = 0; i < count; ++i) {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                     "l"(from), "r"(row_bytes), "r"(barrier)
                     : "memory");
        to += static_cast<uint32_t>(pitch);
        from += row_bytes;
      }
      advance(at, 1);
    }
#endif
  }

  // Row `row` of those from `at` on, when it has arrived.
  __device__ const char* arrive(const RingPosition& at, int row, int row_bytes, int shift) const {
    RingPosition p = at;
    advance(p, row >> shift);
    wait(full + p.stage, p.round);
    return data + p.stage * stage_bytes + (row & ((1 << shift) - 1)) * row_pitch(row_bytes);
  }

  // By a whole warp that is done with `rows` rows; moves on to those behind them.
  __device__ void release(RingPosition& at, int rows, int shift) const {
    const int count = (rows + (1 << shift) - 1) >> shift;
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    for (int i = static_cast<int>(threadIdx.x) % kWarp; i < count; i += kWarp) {
      RingPosition p = at;
      advance(p, i);
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(empty + p.stage)) : "memory");
    }
#endif
    advance(at, count);
  }

 private:
  static __device__ void wait(uint64_t* barrier, unsigned round) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra over;\nbra "
        "again;\nover:\n}" ::"r"(shared_address(barrier)),
        "r"(round & 1)
        : "memory");
#endif
  }
};

}  // namespace m4j::cuda
