// Tiles of the AMX units: the instructions, and both operands of a product prepared for them. A step is 32 of `in`, the
// depth of a product.
#include "ops/cpu/cpu_ops.h"

#if M4J_AMX
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

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

constexpr int64_t kRows = 16, kDepth = 32, kLineBytes = 64, kTileBytes = kRows * kLineBytes;
constexpr int64_t kParts = 3;  // of an activation

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

// The tile registers while it lives: 0-3 for sums and 6 and 7 for activations, of so many tokens, 4 and 5 for weights.
// They are released at once, since a thread that uses them is dearer to switch.
class Tiles {
 public:
  explicit Tiles(int64_t tokens) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? kLineBytes : 4 * tokens);
      config.rows[i] = kRows;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

HWY_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xFFFF : (1 << n) - 1); }

HWY_INLINE __m512i bits(__m512 v) { return _mm512_castps_si512(v); }

// v to the nearest bfloat16; v keeps what is left, exactly.
HWY_INLINE __m512 take_part(__m512& v) {
  const __m512i rounded = _mm512_add_epi32(bits(v), _mm512_set1_epi32(0x8000));
  const __m512 part = _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(-0x10000)));
  v = _mm512_sub_ps(v, part);
  return part;
}

// The three parts of a and b in pairs: part i of a in the lower, of b in the upper half of each element. What two parts
// leave has at most 8 bits.
HWY_INLINE void split(__m512 a, __m512 b, __m512i (&parts)[kParts]) {
#pragma GCC unroll 3
  for (int i = 0; i < kParts; ++i) {
    const __m512 pa = i + 1 < kParts ? take_part(a) : a, pb = i + 1 < kParts ? take_part(b) : b;
    parts[i] = _mm512_or_si512(_mm512_srli_epi32(bits(pa), 16), bits(pb));
  }
}

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

HWY_INLINE __m512 load_upto16(const float* p, int64_t n) {
  return n > 0 ? _mm512_maskz_loadu_ps(first_lanes(n), p) : _mm512_setzero_ps();
}

// x of one token to steps of [16 pairs, kParts]: the parts lie beside each other, like tokens.
inline void split_token(const float* x, int64_t in, uint8_t* out) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t left = in; left > 0; left -= kDepth, x += kDepth) {
    const __m512 a = load_upto16(x, left), b = load_upto16(x + 16, left - 16);
    __m512i parts[kParts];
    split(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b), parts);
    alignas(64) uint32_t lanes[kParts][16];
    for (int i = 0; i < kParts; ++i) _mm512_store_si512(lanes[i], parts[i]);
    for (int l = 0; l < 16; ++l)
      for (int i = 0; i < kParts; ++i, out += 4) std::memcpy(out, &lanes[i][l], 4);
  }
}

// x of at most 16 tokens to steps of [kParts, 16 pairs, 16 tokens]; the last token fills the rest.
inline void split_tokens(const float* x, int64_t ld, int64_t tokens, int64_t in, uint8_t* out) {
  for (int64_t left = in; left > 0; left -= kDepth, x += kDepth, out += kParts * kTileBytes) {
    for (int64_t half = 0; half < 2; ++half) {
      __m512 v[16];
#pragma GCC unroll 16
      for (int64_t t = 0; t < 16; ++t)
        v[t] = load_upto16(x + std::min(t, tokens - 1) * ld + 16 * half, left - 16 * half);
      transpose(v);
#pragma GCC unroll 8
      for (int64_t i = 0; i < 8; ++i) {
        __m512i parts[kParts];
        split(v[2 * i], v[2 * i + 1], parts);
        for (int j = 0; j < kParts; ++j)
          _mm512_store_si512(out + j * kTileBytes + (8 * half + i) * kLineBytes, parts[j]);
      }
    }
  }
}

// The bfloat16 weights of 16 outputs to one tile a step; if there are fewer rows, the last one fills the rest.
inline void pack_strip(const uint8_t* w, int64_t row_bytes, int64_t rows, int64_t in, uint8_t* out) {
  for (int64_t r = 0; r < kRows; ++r) {
    const uint8_t* p = w + std::min(r, rows - 1) * row_bytes;
    uint8_t* to = out + r * kLineBytes;
    for (int64_t left = in; left > 0; left -= kDepth, p += kLineBytes, to += kTileBytes) {
      const __mmask32 mask = left >= kDepth ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
      _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, p));
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3

#endif  // M4J_TILES_INL_H_
#endif  // M4J_AMX
