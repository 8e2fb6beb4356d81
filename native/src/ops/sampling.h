// What choosing a token means, once for all backends: the arithmetic below rounds the same way on every processor and
// GPU, and all sums are of integers, so equal logits give equal tokens everywhere, in whatever order they are added.
//
//   score   = logit; if the id is recent: score / penalty where positive, score * penalty elsewhere
//   weight  = 2^40 * exp((score - largest score) / temperature), cut to an integer; tokens of weight 0 drop out
//   top-k   the k largest scores stay, lower ids first among equals
//   top-p   of those, in the same order, the fewest whose weights sum to at least p of all of theirs
//   min-p   of those, the ones whose weight is at least min_p * 2^40
//   draw    the first id, in ascending order, at which the running sum of weights exceeds random * sum / 2^64
//
// Without temperature it is the largest score, the lowest id among equals. Subnormal logits count as zero.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "mamba4j.h"

#ifdef __CUDACC__
#define M4J_HOST_DEVICE __host__ __device__
#else
#define M4J_HOST_DEVICE
#endif

namespace m4j {

// Sums of weights fit into 64 bits.
constexpr int64_t kMaxSampleVocab = (int64_t{1} << 24) - 1;
constexpr int kWeightBits = 40;

// How one token is chosen. Plain data, so that it can lie in memory that a GPU reads.
struct SampleItem {
  int64_t row;             // of the logits
  const int32_t* recent;   // [n_recent], any ids; those outside of the candidates do nothing
  int64_t n_recent;        // 0 if the penalty is neutral
  int64_t candidates;      // ids below it may be chosen; 0: nothing is to be done for this item
  int64_t top_k;           // 1 ... candidates
  uint64_t top_p;          // times 2^-64; 0: all
  uint64_t min_weight;     // >= 1
  uint64_t random;         // times 2^-64
  float scale;             // log2(e) / temperature; 0: greedy
  float penalty;
  int32_t log_prob;        // 0: not asked for
  int32_t reserved;
};

// token < 0: logit -1 - token is NaN or infinite, the first such one, and log_prob is its value.
struct SampleResult {
  int32_t token;
  float log_prob;  // if asked for: of the token, before penalty, temperature and filters, among the candidates
};

// Subnormal numbers and -0 become 0: processors may be set to ignore the former, and -0 would sort below 0.
M4J_HOST_DEVICE inline float flushed(float v) {
#ifdef __CUDA_ARCH__
  return (__float_as_uint(v) & 0x7f800000u) == 0 ? 0.0f : v;
#else
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  bits = (bits & 0x7f800000u) == 0 ? 0 : bits;
  std::memcpy(&v, &bits, sizeof bits);
  return v;
#endif
}

// Rounded one by one: never fused into one operation.
M4J_HOST_DEVICE inline float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
M4J_HOST_DEVICE inline float sum(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

M4J_HOST_DEVICE inline float penalised(float score, float penalty) {
#ifdef __CUDA_ARCH__
  const float v = score > 0 ? __fdiv_rn(score, penalty) : __fmul_rn(score, penalty);
#else
  const float v = score > 0 ? score / penalty : score * penalty;
#endif
  return flushed(v > FLT_MAX ? FLT_MAX : v < -FLT_MAX ? -FLT_MAX : v);
}

// log2 of the weight over that of the largest score: 0 or less.
M4J_HOST_DEVICE inline float sample_exponent(float score, float largest, float scale) {
  const float y = product(flushed(sum(score, -largest)), scale);
  return y > -64.0f ? y : -64.0f;
}

// 2^(40 + y) for y of sample_exponent, within 3e-7, exact for y = 0. The weight is what is left of it as an integer.
M4J_HOST_DEVICE inline float sample_power(float y) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: rounds what it is added to, and leaves it in the low bits
  const float t = sum(y, kRound);
  const float r = sum(y, -sum(t, -kRound));  // |r| <= 1/2
  float p = 0.00015353268975933795f;         // 2^r, minimax
  p = sum(product(p, r), 0.0013399002864012274f);
  p = sum(product(p, r), 0.009618438562648178f);
  p = sum(product(p, r), 0.05550332165138307f);
  p = sum(product(p, r), 0.24022647897135138f);
  p = sum(product(p, r), 0.6931472029825305f);
  p = sum(product(p, r), 1.0f);
#ifdef __CUDA_ARCH__
  const float power = __uint_as_float((__float_as_uint(t) + 127 + kWeightBits) << 23);
#else
  uint32_t bits;
  std::memcpy(&bits, &t, sizeof bits);
  bits = (bits + 127 + kWeightBits) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
#endif
  return product(p, power);
}
M4J_HOST_DEVICE inline uint64_t sample_weight(float y) {
  return static_cast<uint64_t>(static_cast<int64_t>(sample_power(y)));
}

// Larger for what comes first: by score, then the lower id. Unique in a row.
M4J_HOST_DEVICE inline uint64_t sample_key(float score, int64_t id) {
#ifdef __CUDA_ARCH__
  const uint32_t bits = __float_as_uint(score);
#else
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
#endif
  const uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(order) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
M4J_HOST_DEVICE inline float score_of_key(uint64_t key) {
  const uint32_t order = static_cast<uint32_t>(key >> 32);
  const uint32_t bits = order >> 31 ? order & 0x7fffffffu : ~order;
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
#endif
}
M4J_HOST_DEVICE inline int32_t id_of_key(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

M4J_HOST_DEVICE inline bool is_finite_number(float v) { return v - v == 0; }

// a * b / 2^64
M4J_HOST_DEVICE inline uint64_t high_product(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

// Weights that top-p keeps at least.
M4J_HOST_DEVICE inline uint64_t enough_weight(uint64_t total, uint64_t top_p) {
  const uint64_t enough = high_product(total, top_p);
  return enough > 0 ? enough : 1;
}

// From the logit chosen, the largest one and the sum of weights at temperature 1.
M4J_HOST_DEVICE inline float sample_log_prob(float logit, float largest, uint64_t sum_of_weights) {
  return static_cast<float>(static_cast<double>(logit) - static_cast<double>(largest) -
                            log(static_cast<double>(sum_of_weights) * 0x1p-40));
}
constexpr float kNaturalScale = 1.4426950408889634f;  // of temperature 1

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): 64 bits that depend on seed and
// counter alone, so that a sequence draws the same in any batch and can be taken up anywhere.
inline uint64_t philox(uint64_t seed, uint64_t counter) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0 | static_cast<uint64_t>(c1) << 32;
}

// `s` is valid: src/api/sampling.h has checked it.
inline SampleItem sample_item(const m4j_sampling& s, int64_t row, int64_t vocab_size, bool log_prob) {
  const double scale = 1.4426950408889634 / static_cast<double>(s.temperature);
  const double min_weight = std::ldexp(static_cast<double>(s.min_p), kWeightBits);
  SampleItem item{};
  item.row = row;
  item.candidates = s.candidates == 0 || s.candidates > vocab_size ? vocab_size : s.candidates;
  item.penalty = s.repetition_penalty;
  item.recent = s.recent;
  item.n_recent = s.repetition_penalty == 1.0f ? 0 : s.n_recent;
  item.scale = s.temperature == 0 ? 0.0f : static_cast<float>(std::fmin(std::fmax(scale, FLT_MIN), FLT_MAX));
  item.top_k = s.top_k == 0 || s.top_k > item.candidates ? item.candidates : s.top_k;
  item.top_p = s.top_p == 1 ? 0 : static_cast<uint64_t>(std::fmax(1.0, std::ldexp(static_cast<double>(s.top_p), 64)));
  item.min_weight = min_weight < 1 ? 1 : static_cast<uint64_t>(min_weight);
  item.random = philox(s.seed, s.draw);
  item.log_prob = log_prob ? 1 : 0;
  return item;
}

}  // namespace m4j
