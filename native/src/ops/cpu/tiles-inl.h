// Tiles of the AMX units: the instructions, and what becomes of a tile of sums.
#include "ops/cpu/cpu_ops.h"

#if M4J_AMX
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "ops/cpu/products-inl.h"

#if defined(M4J_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M4J_TILES_INL_H_
#undef M4J_TILES_INL_H_
#else
#define M4J_TILES_INL_H_
#endif

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

constexpr int64_t kTileBytes = kRows * kLineBytes;

template <int kTile>
HWY_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
HWY_INLINE void tile_load(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
HWY_INLINE void tile_store(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
// Each element of kSum adds the products of even, then of odd numbers of its row of kA and its column of kB.
template <int kSum, int kA, int kB>
HWY_INLINE void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}
// The same of signed bytes, four by four, in integers.
template <int kSum, int kA, int kB>
HWY_INLINE void tile_dot_bytes() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}

// The tile registers while it lives: 0-3 for sums and 6 and 7 for activations, of so many tokens, 4 and 5 for weights,
// of which an output has so many bytes in a step. They are released at once, since a thread that uses them is dearer to
// switch.
class Tiles {
 public:
  Tiles(int64_t tokens, int64_t weight_bytes) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? weight_bytes : 4 * tokens);
      config.rows[i] = static_cast<uint8_t>(i < 6 ? kRows : weight_bytes / 4);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// 16 x 16.
HWY_INLINE void transpose(__m512 (&v)[16]) {
  __m512 u[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    u[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    u[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // v[i + j]: column j of each 4 x 4
    v[i] = _mm512_shuffle_ps(u[i], u[i + 2], 0x44);
    v[i + 1] = _mm512_shuffle_ps(u[i], u[i + 2], 0xEE);
    v[i + 2] = _mm512_shuffle_ps(u[i + 1], u[i + 3], 0x44);
    v[i + 3] = _mm512_shuffle_ps(u[i + 1], u[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(v[j], v[j + 4], 0x88), b = _mm512_shuffle_f32x4(v[j], v[j + 4], 0xDD);
    const __m512 c = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0x88), d = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0xDD);
    u[j] = _mm512_shuffle_f32x4(a, c, 0x88);
    u[j + 8] = _mm512_shuffle_f32x4(a, c, 0xDD);
    u[j + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    u[j + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = u[i];
}

// c to the outputs [n, n + rows) of `tokens` tokens.
template <int kTokens>
void store_outputs(const LinearArgs& a, const float* c, int64_t token, int64_t tokens, int64_t n, int64_t rows) {
  const __mmask16 mask = first_lanes(rows);
  const __m512 bias = a.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, a.bias + n);
  float* out = a.out + token * a.ld_out + n;
  if constexpr (kTokens == 1) {
    _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(_mm512_load_ps(c), bias));
  } else {
    __m512 v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = _mm512_load_ps(c + 16 * i);
    transpose(v);
    for (int64_t t = 0; t < tokens; ++t, out += a.ld_out) _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(v[t], bias));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3

#endif  // M4J_TILES_INL_H_
#endif  // M4J_AMX
