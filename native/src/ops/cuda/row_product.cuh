// Products of a few vectors with rows of a matrix that stream through a Ring, on the tensor cores. The warps of a block
// share the columns: each works on its slice of all rows, so that all end together however few rows there are, and needs
// no more of the vectors than that slice.
#pragma once

#include "ops/cuda/weight_ring.cuh"

namespace m4j::cuda {

constexpr int kChunk = 32;      // columns that four lanes take together
constexpr int kTileRows = 16;   // of a product
constexpr int kFragment = 128;  // bytes of a chunk of one vector

// The columns [begin, begin + size) that a warp takes. The warps are shared out to `groups` equal parts of the vector:
// warps_of_group(groups) for each, the rest has nothing to do.
struct Slice {
  int begin, size, chunks;
};

__host__ __device__ inline int warps_of_group(int groups) { return kWarps / groups; }
__host__ __device__ inline int chunks_of(int size) { return (size + kChunk - 1) / kChunk; }

__device__ inline Slice slice_of_warp(int columns, int groups) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, warps = warps_of_group(groups), group = warp / warps;
  if (group >= groups) return {0, 0, 0};
  const int size = columns / groups, chunks = chunks_of(size);
  const int begin = chunks * (warp % warps) / warps, end = chunks * (warp % warps + 1) / warps;
  return {group * size + begin * kChunk, min(size, end * kChunk) - begin * kChunk, end - begin};
}

// Vectors of a slice lie in shared memory as the right operand of mma() is read, one vector after the other. 16-bit types
// hold a number as the sum of two, in two columns of the operand: all of its leading 16 (bf16) or 22 (f16) bits. Four
// vectors fill the eight columns.
template <typename W>
__device__ void put_fragment(char* vector, int k, float v0, float v1) {  // elements k and k + 1, k is even
  char* at = vector + k / kChunk * kFragment;
  if constexpr (sizeof(W) == 4) {
    *reinterpret_cast<float2*>(at + k % kChunk * 4) = {v0, v1};
  } else {
    const uint32_t high = pack<W>(v0, v1);
    const float2 h = unpack<W>(high);
    *reinterpret_cast<uint32_t*>(at + k % kChunk * 2) = high;
    *reinterpret_cast<uint32_t*>(at + k % kChunk * 2 + kFragment / 2) = pack<W>(v0 - h.x, v1 - h.y);
  }
}

// d += a b in tf32, which keeps the leading 11 bits of a and b.
__device__ inline void mma_tf32(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  asm(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

__device__ inline float leading(float v) { return __uint_as_float(__float_as_uint(v) & 0xffffe000u); }
__device__ inline float4 leading(const float4& v) { return {leading(v.x), leading(v.y), leading(v.z), leading(v.w)}; }
__device__ inline float4 minus(const float4& a, const float4& b) { return {a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w}; }

// Chunk `i` of 16 rows, of which a lane reads two where they exist, times the vectors. `left` columns of the slice are
// not done yet; what lies behind them is not read. `x` is the lane's part of the vectors, null if it has none.
template <typename W>
__device__ void multiply_chunk(const char* const (&row)[2], const char* x, int i, int left, float (&even)[4],
                               float (&odd)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto load = [](const char* p) { return *reinterpret_cast<const uint4*>(p); };
  if constexpr (sizeof(W) == 2) {
    const bool inside = lane % 4 * 8 < left;
    uint4 a = {}, b = {}, v = {};
    if (inside && row[0] != nullptr) a = load(row[0] + i * kChunk * 2);
    if (inside && row[1] != nullptr) b = load(row[1] + i * kChunk * 2);
    if (x != nullptr) v = load(x + i * kFragment);
    mma<W>(even, {a.x, b.x, a.y, b.y}, v.x, v.y);
    mma<W>(odd, {a.z, b.z, a.w, b.w}, v.z, v.w);
  } else {
    const auto load4 = [](const char* p) { return *reinterpret_cast<const float4*>(p); };
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const bool inside = j * 16 + lane % 4 * 4 < left;
      float4 a = {}, b = {}, v = {};
      if (inside && row[0] != nullptr) a = load4(row[0] + (i * 2 + j) * 64);
      if (inside && row[1] != nullptr) b = load4(row[1] + (i * 2 + j) * 64);
      if (x != nullptr) v = load4(x + i * kFragment + j * 64);
      const float4 high = leading(v), low = minus(v, high), part = lane / 4 % 2 == 0 ? high : low;
      const float4 a1 = leading(a), a2 = minus(a, a1), b1 = leading(b), b2 = minus(b, b1);
      mma_tf32(even, a1.x, b1.x, a1.y, b1.y, part.x, part.y);
      mma_tf32(odd, a2.x, b2.x, a2.y, b2.y, part.x, part.y);
      mma_tf32(even, a1.z, b1.z, a1.w, b1.w, part.z, part.w);
      mma_tf32(odd, a2.z, b2.z, a2.w, b2.w, part.z, part.w);
    }
  }
}

// The warp's part of the products of the next `rows` rows of the ring with vectors that lie `stride` bytes apart in shared
// memory; sums[row << tokens_shift | token].
template <typename W>
__device__ void multiply(const Ring& ring, RingPosition& at, const Slice& slice, const char* fragments, int stride,
                         int tokens, int tokens_shift, int rows, int row_bytes, int shift, float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, r = lane / 4, c = lane % 4;
  const int tile = ring.tile_rows(shift, kTileRows), offset = slice.begin * static_cast<int>(sizeof(W)) + c * 16;
  const int place = sizeof(W) == 2 ? lane % 8 * 16 : c * 16;
  const char* x = lane < 8 * tokens ? fragments + lane / 8 * stride + place : nullptr;
  for (int first = 0; first < rows; first += tile) {
    const int count = min(tile, rows - first);
    const char* row[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (r + half * 8 < count) row[half] = ring.arrive(at, r + half * 8, row_bytes, shift) + offset;
    }
    __syncwarp();
    float even[4] = {}, odd[4] = {};
#pragma unroll 2
    for (int i = 0; i < slice.chunks; ++i) multiply_chunk<W>(row, x, i, slice.size - i * kChunk, even, odd);
    ring.release(at, count, shift);
    if (c >= tokens) continue;
    float* to = sums + ((first + r) << tokens_shift) + c;
    if (r < count) to[0] = even[0] + even[1] + odd[0] + odd[1];
    if (r + 8 < count) to[8 << tokens_shift] = even[2] + even[3] + odd[2] + odd[3];
  }
}

}  // namespace m4j::cuda
