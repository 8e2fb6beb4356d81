// Tensor-core products of 16-bit matrices in shared memory, and the copies that feed them (sm_80 and newer).
//
// A tile is 64 rows of 128 bytes for each 64 columns (a panel); the 16-byte piece c of row r lies at place c ^ (r % 8),
// so that the eight rows of an 8 x 8 matrix lie in different banks whichever way it is read.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ops/cuda/launch.cuh"

namespace m4j::cuda {

constexpr int kPanelBytes = 64 * 128;

// Byte offset in a tile of the 16-byte piece `piece` of `row`.
__device__ inline uint32_t tile_offset(int row, int piece) {
  return static_cast<uint32_t>((piece >> 3) * kPanelBytes + row * 128 + (((piece & 7) ^ (row & 7)) << 4));
}

// Where a lane's row of an 8 x 8 matrix of the first 16 rows and 16 columns begins, if the lanes' groups of eight take
// the lower rows for bit `row_bit` of the group and the right columns for the other. The place for columns 16 further
// on, k times, comes from it by advance(); 16 rows further on lie 16 * 128 bytes away.
__device__ inline uint32_t matrix_address(uint32_t tile, int lane, int row_bit) {
  const int lower = lane >> (3 + row_bit) & 1, right = lane >> (4 - row_bit) & 1;
  return tile + tile_offset(lane % 8 + 8 * lower, right);
}
__device__ inline uint32_t advance(uint32_t address, int k) {  // of a tile at a multiple of 128 bytes
  return (address ^ static_cast<uint32_t>(k % 4 * 32)) + static_cast<uint32_t>(k / 4 * kPanelBytes);
}

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes to shared memory without passing through registers; zeros if not `valid`.
__device__ inline void copy_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8 x 8 matrices, whose rows' addresses the lanes 0-7, 8-15, 16-23 and 24-31 give.
__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ inline uint32_t transpose_matrix(uint32_t v) {
  uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define M4J_STORE_MATRICES
// The transposes of four 8 x 8 matrices, held as mma() leaves its sums, rounded; rows' addresses as in load_matrices.
__device__ inline void store_matrices_transposed(uint32_t address, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}
#endif

// d += a b for a [16, 16] and b [16, 8]. Lane 4 g + t holds of d: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <typename T>
__device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers in one register, the first in the low half.
template <typename T>
__device__ uint32_t pack(float low, float high);
template <>
__device__ inline uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
__device__ inline uint32_t pack<__half>(float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

template <typename T>
__device__ float2 unpack(uint32_t v);
template <>
__device__ inline float2 unpack<__nv_bfloat16>(uint32_t v) {
  return {__uint_as_float(v << 16), __uint_as_float(v & 0xFFFF0000u)};
}
template <>
__device__ inline float2 unpack<__half>(uint32_t v) { return __half22float2(*reinterpret_cast<const __half2*>(&v)); }

}  // namespace m4j::cuda
