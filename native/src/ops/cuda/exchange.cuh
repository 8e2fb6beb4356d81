// Vectors that the blocks of a resident kernel hand to each other. A number travels in one word of 64 bits with the tag
// of its step and layer: who needs it reads until the tag is there, and nobody waits for anything else, no barrier, no
// fence. Tags count on from step to step, so that what an older one has left is never taken for this one's.
//
// A block may write over a vector a layer later without asking: what it computes from then on depends on numbers of
// all blocks that come after those blocks have read the vector. This holds as long as a block reads a vector only if
// rows of its own, which others wait for, depend on all of it.
#pragma once

#include <cstdint>

#include "ops/cuda/decode_step.h"
#include "ops/cuda/row_product.cuh"

namespace m4j::cuda {

using Packet = uint64_t;

__device__ inline Packet packet(float value, unsigned tag) { return uint64_t{tag} << 32 | __float_as_uint(value); }
__device__ inline void publish(Packet* to, float value, unsigned tag) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(packet(value, tag)) : "memory");
}
__device__ inline Packet look(const Packet* p) {
  Packet v;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ inline bool has_tag(Packet v, unsigned tag) { return static_cast<unsigned>(v >> 32) == tag; }
__device__ inline float value_of(Packet v) { return __uint_as_float(static_cast<uint32_t>(v)); }

// Two neighbours of a vector. Where one packet is enough, it holds the leading 24 bits of each and the last 16 of the
// tag: put_fragment() keeps about as many for 16-bit weights.
template <int kPackets>
struct Pair {
  Packet packets[kPackets];

  __device__ static Pair zeros(unsigned tag) {
    Pair p;
    for (Packet& v : p.packets) v = packet(0, tag << (kPackets == 1 ? 16 : 0));
    return p;
  }
  __device__ static Pair none(unsigned tag) {  // that has not the tag
    Pair p = zeros(tag);
    for (Packet& v : p.packets) v = ~v;
    return p;
  }
  __device__ bool has_tag(unsigned tag) const {
    if constexpr (kPackets == 1) return packets[0] >> 48 == (tag & 0xffff);
    return cuda::has_tag(packets[0], tag) && cuda::has_tag(packets[kPackets - 1], tag);
  }
  __device__ float2 values() const {
    if constexpr (kPackets == 2) return {value_of(packets[0]), value_of(packets[kPackets - 1])};
    const auto low = static_cast<uint32_t>(packets[0]), high = static_cast<uint32_t>(packets[0] >> 32);
    return {__uint_as_float(low << 8), __uint_as_float(__byte_perm(low, high, 0x5430) & ~0xffu)};
  }
  __device__ void look(const Packet* p) {
    if constexpr (kPackets == 1) {
      packets[0] = cuda::look(p);
    } else {
      asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                   : "=l"(packets[0]), "=l"(packets[kPackets - 1])
                   : "l"(p)
                   : "memory");
    }
  }
};

// v to the nearest that has 24 bits, in the upper bits.
__device__ inline uint32_t rounded_bits(float v) { return v == v ? __float_as_uint(v) + 0x80 : 0x7fffffff; }

// Elements k and k + 1 of a vector; k is even.
template <int kPackets>
__device__ void publish(Packet* vector, int k, float v0, float v1, unsigned tag) {
  if constexpr (kPackets == 1) {
    const uint32_t a = rounded_bits(v0), b = rounded_bits(v1);
    const Packet both = Packet{__byte_perm(b, tag, 0x5432)} << 32 | __byte_perm(a, b, 0x5321);
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(vector + k / 2), "l"(both) : "memory");
  } else {
    publish(vector + k, v0, tag);
    publish(vector + k + 1, v1, tag);
  }
}

// A warp's slice of `tokens` vectors [size] that lie one after the other, times `weight` if there is one and `factor`,
// to its fragments, which lie `stride` bytes apart. `squares` are the lane's parts of the sums of squares.
template <typename W, int kPackets, int kTokens>
__device__ void receive(const Packet* from, int size, unsigned tag, const float* weight, float factor,
                        const Slice& slice, int tokens, char* fragments, int stride, float (&squares)[kTokens]) {
  constexpr int kBatch = 10 / kPackets;  // loads on their way
  constexpr int kPart = 2 * kWarp;       // elements of a load of all lanes
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Packet* begin = from + (slice.begin / 2 + lane) * kPackets;
  const float* weights = weight + slice.begin + 2 * lane;
  const int mine = slice.size - 2 * lane;  // elements from the lane's first on
  // The vector and the first element of a load.
  struct Place {
    int t, k;
    __device__ void next(int size) {
      k += kPart;
      if (kTokens == 1 || k < size) return;
      k = 0;
      ++t;
    }
    __device__ bool ends(int tokens, int size) const { return kTokens == 1 ? k >= size : t >= tokens; }
  };
  if (slice.size == 0) return;
#pragma unroll 1
  for (Place first{0, 0}; !first.ends(tokens, slice.size);) {
    // What is not the lane's counts as there. No branches: they would cost more than the loads they leave out.
    float2 g[kBatch];
    Pair<kPackets> v[kBatch];
    const Packet* packets[kBatch];
    bool own[kBatch];
    Place at = first;
#pragma unroll
    for (int j = 0; j < kBatch; ++j, at.next(slice.size)) {
      own[j] = at.k < mine && (kTokens == 1 || at.t < tokens);
      g[j] = weight != nullptr && own[j] ? *reinterpret_cast<const float2*>(weights + at.k) : float2{1, 1};
      v[j] = own[j] ? Pair<kPackets>::none(tag) : Pair<kPackets>::zeros(tag);
      packets[j] = begin + (at.t * size + at.k) / 2 * kPackets;
    }
    for (bool missing = true; __any_sync(~0u, missing);) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (!v[j].has_tag(tag)) v[j].look(packets[j]);
      }
      missing = false;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) missing |= !v[j].has_tag(tag);
    }
    at = first;
#pragma unroll
    for (int j = 0; j < kBatch; ++j, at.next(slice.size)) {
      if (!own[j]) continue;
      const auto [a, b] = v[j].values();
      const float both = fmaf(a, a, b * b);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) squares[t] += kTokens == 1 || at.t == t ? both : 0;
      put_fragment<W>(fragments + at.t * stride, at.k + 2 * lane, a * (g[j].x * factor), b * (g[j].y * factor));
    }
    first = at;
  }
  __syncwarp();
}

}  // namespace m4j::cuda
