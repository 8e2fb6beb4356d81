// Sampling without sorting: weights are counted in bins by score, and only the bin in which a filter ends is put in
// order. Members take rows. Loops of plain operations, which the compiler turns into vectors for each target.
#include <algorithm>
#include <functional>

#include "ops/ops.h"
#include "ops/sampling.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/sample.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kBins = 1024;
constexpr float kBinsOfOne = kBins / 41.0f;  // bins of a factor of 2 in weight, which ends at 2^-40

float largest_of(const float* x, int64_t n) {
  const VecTag d;
  Vec m = hn::Set(d, x[0]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) m = hn::Max(m, hn::LoadU(d, x + i));
  float largest = hn::GetLane(hn::MaxOfLanes(d, m));
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

void powers(const float* scores, int64_t n, float largest, float scale, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = sample_power(sample_exponent(scores[i], largest, scale));
}

uint64_t weight(float power) { return static_cast<uint64_t>(static_cast<int64_t>(power)); }

uint64_t sum_of_weights(const float* powers, int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += weight(powers[i]);
  return sum;
}

// One row, its scores and powers of them.
struct Row {
  const SampleItem& item;
  const float* scores;
  const float* powers;
  float largest;
  uint64_t* keys;  // room for all

  int bin(int64_t i) const {
    const int b = static_cast<int>(sample_exponent(scores[i], largest, item.scale) * -kBinsOfOne);
    return b < kBins ? b : kBins - 1;
  }

  // The least key that stays if, of keys from `least` on, so many stay (by_count) or as many as weigh enough for top-p.
  uint64_t border(uint64_t least, bool by_count) const {
    int64_t counts[kBins] = {};
    uint64_t weights[kBins] = {};
    for (int64_t i = 0; i < item.candidates; ++i) {
      const uint64_t w = weight(powers[i]);
      if (w == 0 || sample_key(scores[i], i) < least) continue;
      const int b = bin(i);
      ++counts[b];
      weights[b] += w;
    }
    uint64_t total = 0;
    for (int b = 0; b < kBins; ++b) total += by_count ? static_cast<uint64_t>(counts[b]) : weights[b];
    const uint64_t enough = by_count ? static_cast<uint64_t>(item.top_k) : enough_weight(total, item.top_p);
    if (total <= enough) return least;
    uint64_t before = 0;
    int b = 0;
    for (;; ++b) {
      const uint64_t more = by_count ? static_cast<uint64_t>(counts[b]) : weights[b];
      if (before + more >= enough) break;
      before += more;
    }
    int64_t n = 0;
    for (int64_t i = 0; i < item.candidates; ++i) {
      const uint64_t key = sample_key(scores[i], i);
      if (bin(i) == b && weight(powers[i]) > 0 && key >= least) keys[n++] = key;
    }
    std::sort(keys, keys + n, std::greater<uint64_t>());
    for (const uint64_t* key = keys;; ++key) {
      before += by_count ? 1 : weight(powers[id_of_key(*key)]);
      if (before >= enough) return *key;
    }
  }

  bool stays(int64_t i, uint64_t least) const {
    return weight(powers[i]) >= item.min_weight && sample_key(scores[i], i) >= least;
  }

  int64_t draw() const {
    uint64_t least = 0, total = 0;
    if (item.top_k < item.candidates) least = border(least, true);
    if (item.top_p != 0) least = border(least, false);
    for (int64_t i = 0; i < item.candidates; ++i) total += stays(i, least) ? weight(powers[i]) : 0;
    const uint64_t target = high_product(total, item.random);
    uint64_t running = 0;
    for (int64_t i = 0;; ++i) {
      running += stays(i, least) ? weight(powers[i]) : 0;
      if (running > target) return i;
    }
  }
};

SampleResult sample_row(const float* logits, const SampleItem& item, float* scores, float* row_powers, uint64_t* keys) {
  const int64_t n = item.candidates;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    scores[i] = flushed(logits[i]);
    finite &= is_finite_number(logits[i]);
  }
  if (!finite) {
    int64_t i = 0;
    while (is_finite_number(logits[i])) ++i;
    return {static_cast<int32_t>(-1 - i), logits[i]};
  }
  float largest = largest_of(scores, n);
  const float largest_logit = largest;
  uint64_t all = 0;
  if (item.log_prob != 0) {
    powers(scores, n, largest, kNaturalScale, row_powers);
    all = sum_of_weights(row_powers, n);
  }
  for (int64_t i = 0; i < item.n_recent; ++i) {
    const int32_t id = item.recent[i];
    if (id >= 0 && id < n) scores[id] = penalised(flushed(logits[id]), item.penalty);
  }
  if (item.n_recent > 0) largest = largest_of(scores, n);
  int64_t id;
  if (item.scale == 0) {
    id = std::find(scores, scores + n, largest) - scores;
  } else {
    powers(scores, n, largest, item.scale, row_powers);
    id = Row{item, scores, row_powers, largest, keys}.draw();
  }
  return {static_cast<int32_t>(id),
          item.log_prob != 0 ? sample_log_prob(flushed(logits[id]), largest_logit, all) : 0.0f};
}

}  // namespace

int64_t SampleScratch(int64_t vocab_size) { return 4 * (vocab_size + 1); }

void Sample(const SampleArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.count, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i) {
    const SampleItem& item = a.items[i];
    if (item.candidates == 0) continue;
    uint64_t* const keys = reinterpret_cast<uint64_t*>(share.scratch);
    float* const scores = share.scratch + 2 * item.candidates;
    a.results[i] =
        sample_row(a.logits + item.row * a.ld_logits, item, scores, scores + item.candidates, keys);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
