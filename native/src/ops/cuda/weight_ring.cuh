// What a resident kernel reads from memory, streamed through shared memory: one warp of a block fetches rows in the
// order in which the others will need them, as far ahead as there is room, and waits for nobody but them; so the memory
// is busy while they wait for other blocks.
#pragma once

#include <cstdint>

#include "ops/cuda/mma.cuh"

namespace m4j::cuda {

constexpr int kWarps = 8;         // that multiply; others fetch, add or finish
constexpr int kMaxStages = 64;    // of the ring
constexpr int kMaxRowsShift = 4;  // log2 of the rows of a stage

// The part [begin, begin + count) of n items, n * gridDim.x < 2^32, that this block works on, in multiples of `unit`.
struct Share {
  int begin, count;

  Share() = default;
  __device__ explicit Share(int n, int unit = 1)
      : begin(bound(n / unit, blockIdx.x) * unit), count(bound(n / unit, blockIdx.x + 1) * unit - begin) {}

 private:
  static __device__ int bound(int n, unsigned block) {
    return static_cast<int>(static_cast<unsigned>(n) * block / gridDim.x);
  }
};

// Asks for memory that will be read soon, widened to what a prefetch can name: `p` lies in an array that begins and
// ends at multiples of 16 bytes.
__device__ inline void prefetch(const void* p, int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  const auto begin = reinterpret_cast<uint64_t>(p) & ~uint64_t{15};
  const auto end = (reinterpret_cast<uint64_t>(p) + static_cast<uint64_t>(bytes) + 15) & ~uint64_t{15};
  if (begin == end) return;
  const auto size = static_cast<uint32_t>(end - begin);
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(begin), "r"(size) : "memory");
#endif
}

// Rows follow each other in a stage at half a line of banks more than whole lines, so that eight lanes that read 64
// bytes of each of two rows meet no bank twice.
__host__ __device__ inline int row_pitch(int row_bytes) { return (row_bytes + 63) / 128 * 128 + 64; }

// How rows of one length are fetched: log2 of the rows of a stage, rows of a tile at most, and how many tiles may be on
// their way. What has been asked for and not come delays all that comes after it, what blocks hand to each other too: no
// more than keeps the memory busy.
struct Tiles {
  int shift, rows, ahead;
};

// The next stage and tile, and how many stages lie behind.
struct RingPosition {
  int stage = 0;
  unsigned tile = 0, passed = 0;
};

// A tile is some rows that arrive together; it takes whole stages, of 1 << shift rows each. Every warp waits for every
// tile, whether it reads it or not: otherwise it could hand back what has not arrived yet.
struct Ring {
  char* data;             // [stages, stage_bytes]
  uint64_t* full;         // [kMaxStages] mbarriers: tile n has arrived, n modulo kMaxStages
  unsigned* handed_back;  // [kWarps] stages that each warp does not need any more
  int stages, stage_bytes;

  // By the fetching warp, before the others look.
  __device__ void init() const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane < kWarps) handed_back[lane] = 0;
#if __CUDA_ARCH__ >= 900
#pragma unroll
    for (int i = lane; i < kMaxStages; i += kWarp) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(full + i)) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    __syncwarp();
  }

  // The place of row `row` of the next tile.
  __device__ char* row(const RingPosition& at, int row, int pitch, int shift) const {
    int stage = at.stage + (row >> shift);
    if (stage >= stages) stage -= stages;
    return data + stage * stage_bytes + (row & ((1 << shift) - 1)) * pitch;
  }

  // By the fetching warp: `rows` rows that lie one after the other in memory. The stages up to `free` of all stages of
  // the step are known to be free; `more` tiles than usual may be on their way before the first.
  __device__ void fetch(RingPosition& at, unsigned& free, const char* from, int row_bytes, int rows,
                        const Tiles& tiles, int more = 0) const {
#if __CUDA_ARCH__ >= 900
    const int lane = static_cast<int>(threadIdx.x) % kWarp, pitch = row_pitch(row_bytes);
#pragma unroll 1
    for (int first = 0; first < rows; first += tiles.rows) {
      const int count = min(tiles.rows, rows - first), taken = stages_of(count, tiles.shift);
      while (static_cast<int>(at.passed + taken - free) > 0) {
        unsigned back = 0;
        const uint32_t place = shared_address(handed_back + min(lane, kWarps - 1));
        asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(back) : "r"(place) : "memory");
        free = at.passed - __reduce_max_sync(~0u, at.passed - back) + static_cast<unsigned>(stages);
      }
      const auto ahead = static_cast<unsigned>(tiles.ahead + (first == 0 ? more : 0));
      if (at.tile >= ahead) wait({0, at.tile - ahead, 0});
      const uint32_t barrier = shared_address(full + at.tile % kMaxStages);
      if (lane == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(count * row_bytes)
                     : "memory");
      }
      __syncwarp();
#pragma unroll 1
      for (int i = lane; i < count; i += kWarp) {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         shared_address(row(at, i, pitch, tiles.shift))),
                     "l"(from + static_cast<int64_t>(first + i) * row_bytes), "r"(row_bytes), "r"(barrier)
                     : "memory");
      }
      advance(at, taken);
    }
#endif
  }

  // By a whole warp: until that tile is there.
  __device__ void wait(const RingPosition& at) const {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra over;\nbra "
        "again;\nover:\n}" ::"r"(shared_address(full + at.tile % kMaxStages)),
        "r"(at.tile / kMaxStages & 1)
        : "memory");
#endif
  }

  // By a whole warp that is done with a tile of `rows` rows; moves on to the next.
  __device__ void release(RingPosition& at, int rows, int shift) const {
    advance(at, stages_of(rows, shift));
    __syncwarp();
    if (threadIdx.x % kWarp == 0) {
      const uint32_t place = shared_address(handed_back + threadIdx.x / kWarp);
      asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(place), "r"(at.passed) : "memory");
    }
  }

 private:
  static __device__ int stages_of(int rows, int shift) { return (rows + (1 << shift) - 1) >> shift; }

  __device__ void advance(RingPosition& at, int count) const {
    at.stage += count;
    if (at.stage >= stages) at.stage -= stages;
    at.passed += static_cast<unsigned>(count);
    ++at.tile;
  }
};

}  // namespace m4j::cuda
