// Products of a few vectors with rows of a matrix that stream through a Ring, on the tensor cores. The warps of a block
// share the columns: each works on its slice of all rows, so that all end together however few rows there are, and
// needs no more of the vectors than that slice.
#pragma once

#include "ops/cuda/weight_ring.cuh"

namespace m4j::cuda {

constexpr int kChunk = 32;      // columns that four lanes take together
constexpr int kTileRows = 16;   // of a product, at most
constexpr int kFragment = 128;  // bytes of a chunk of one vector
constexpr int kPiece = 64;      // bytes of a row that a warp multiplies at a time

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

// The left operand of an mma() are eight rows of weights, of which a lane has eight elements: four words as they lie in
// memory, though the instruction takes them for two words of each of two rows. So the upper eight rows of the result
// are sums over the even words and the lower over the odd ones, if the right operand has columns of its own for both.
// 16-bit types hold a number of the vector as the sum of two, also in columns of their own: all of its leading 16
// (bf16) or 22 (f16) bits. With that, two vectors fill the eight columns: column 4 v + 2 odd + low.
//
// Vectors lie in shared memory one after the other, the even words of each four before the odd.
template <typename W>
__device__ void put_fragment(char* vector, int k, float v0, float v1) {  // elements k and k + 1, k is even
  char* at = vector + k / kChunk * kFragment;
  if constexpr (sizeof(W) == 4) {
    float* to = reinterpret_cast<float*>(at + k % kChunk / 4 * 16) + k % 4 / 2;
    to[0] = v0;
    to[2] = v1;
  } else {
    const uint32_t high = pack<W>(v0, v1);
    const float2 h = unpack<W>(high);
    const int word = k / 2 % 4;
    uint32_t* to = reinterpret_cast<uint32_t*>(at + k % kChunk / 8 * 16) + (word >> 1 | (word & 1) << 1);
    to[0] = high;
    to[kFragment / 8] = pack<W>(v0 - h.x, v1 - h.y);
  }
}

// d += a b in tf32, which keeps the leading 11 bits of a and b.
__device__ inline void mma_tf32(float (&d)[4], const float4& a, float b0, float b1) {
  asm(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a.x)), "r"(__float_as_uint(a.y)), "r"(__float_as_uint(a.z)), "r"(__float_as_uint(a.w)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
__device__ inline float leading(float v) { return __uint_as_float(__float_as_uint(v) & 0xffffe000u); }

// 16 bytes of a row times two vectors, of which a lane has the column lane / 4, at `x`.
template <typename W>
__device__ void multiply_piece(const uint4& a, const uint2& x, float (&sum)[4]) {
  if constexpr (sizeof(W) == 2) {
    mma<W>(sum, {a.x, a.y, a.z, a.w}, x.x, x.y);
  } else {
    const bool low = threadIdx.x / 4 % 2 != 0;
    const float x0 = __uint_as_float(x.x), x1 = __uint_as_float(x.y);
    const float b0 = low ? x0 - leading(x0) : x0, b1 = low ? x1 - leading(x1) : x1;
    const float4 w = {__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w)};
    const float4 high = {leading(w.x), leading(w.y), leading(w.z), leading(w.w)};
    mma_tf32(sum, high, b0, b1);
    mma_tf32(sum, {w.x - high.x, w.y - high.y, w.z - high.z, w.w - high.w}, b0, b1);
  }
}

// Where a warp's part of a tile lies: for each lane its 16 bytes of the upper and the lower eight rows, and its column of
// each pair of vectors.
template <int kPairs>
struct Operand {
  const char *upper, *lower, *x[kPairs];
};

// sum += kCount pieces of 64 bytes of each row from piece `first` on. `inside`: what the lane reads of them exists; what
// lies behind may be no number.
template <typename W, int kPairs, bool kTwo, int kCount>
__device__ void add_pieces(const Operand<kPairs>& from, int first, int pairs, float (&sum)[2][2][kPairs][4],
                           bool inside = true) {
  constexpr int kStep = kFragment / (kChunk * static_cast<int>(sizeof(W)) / kPiece);
  uint4 a[kCount] = {}, b[kCount] = {};
  uint2 v[kCount][kPairs] = {};
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (!inside) continue;
    a[j] = *reinterpret_cast<const uint4*>(from.upper + (first + j) * kPiece);
    if (kTwo) b[j] = *reinterpret_cast<const uint4*>(from.lower + (first + j) * kPiece);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair < pairs) v[j][pair] = *reinterpret_cast<const uint2*>(from.x[pair] + (first + j) * kStep);
    }
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair >= pairs) break;
      multiply_piece<W>(a[j], v[j][pair], sum[0][j % 2][pair]);
      if (kTwo) multiply_piece<W>(b[j], v[j][pair], sum[1][j % 2][pair]);
    }
  }
}

template <typename W, int kPairs, bool kTwo>
__device__ void add_slice(const Operand<kPairs>& from, const Slice& slice, int pairs, float (&sum)[2][2][kPairs][4]) {
  const int bytes = slice.size * static_cast<int>(sizeof(W)), whole = bytes / kPiece;
  int i = 0;
#pragma unroll 1
  for (; i + 4 <= whole; i += 4) add_pieces<W, kPairs, kTwo, 4>(from, i, pairs, sum);
  if (whole & 2) {
    add_pieces<W, kPairs, kTwo, 2>(from, i, pairs, sum);
    i += 2;
  }
  if (whole & 1) add_pieces<W, kPairs, kTwo, 1>(from, i++, pairs, sum);
  if (i * kPiece < bytes) {
    add_pieces<W, kPairs, kTwo, 1>(from, i, pairs, sum, i * kPiece + static_cast<int>(threadIdx.x) % 4 * 16 < bytes);
  }
}

// The warp's part of the products of the next `rows` rows of the ring, `tile` at a time, with vectors that lie `stride`
// bytes apart in shared memory; sums[row << tokens_shift | token].
template <typename W, int kPairs>
__device__ void multiply(const Ring& ring, RingPosition& at, const Slice& slice, const char* fragments, int stride,
                         int tokens, int tokens_shift, int rows, int row_bytes, int shift, int tile, float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, r = lane / 4, c = lane % 4;
  const int pitch = row_pitch(row_bytes), offset = slice.begin * static_cast<int>(sizeof(W)) + c * 16;
  const int pairs = kPairs == 1 ? 1 : (tokens + 1) / 2;
  Operand<kPairs> from;
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    const int t = min(2 * pair + r / 4, tokens - 1);  // the columns of a vector that there is not are not looked at
    from.x[pair] = fragments + t * stride + (sizeof(W) == 2 ? r % 2 * (kFragment / 2) : 0) + c * 16 + r / 2 % 2 * 8;
  }
#pragma unroll 1
  for (int first = 0; first < rows; first += tile) {
    const int count = min(tile, rows - first);
    from.upper = ring.row(at, min(r, count - 1), pitch, shift) + offset;
    from.lower = ring.row(at, min(r + 8, count - 1), pitch, shift) + offset;
    float sum[2][2][kPairs][4] = {};  // of alternating pieces, so that one product need not wait for the last
    ring.wait(at);
    if (count > 8) {
      add_slice<W, kPairs, true>(from, slice, pairs, sum);
    } else {
      add_slice<W, kPairs, false>(from, slice, pairs, sum);
    }
    ring.release(at, count, shift);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair >= pairs) break;
      const int t = 2 * pair + c / 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float(&d)[4] = sum[half][0][pair], (&e)[4] = sum[half][1][pair];
        float v = c % 2 == 0 ? d[0] + d[1] + (e[0] + e[1]) : d[2] + d[3] + (e[2] + e[3]);
        v += __shfl_xor_sync(~0u, v, 1);
        const int row = r + half * 8;
        if (c % 2 == 0 && row < count && t < tokens) sums[((first + row) << tokens_shift) + t] = v;
      }
    }
  }
}

}  // namespace m4j::cuda
