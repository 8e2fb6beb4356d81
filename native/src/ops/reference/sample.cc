#include <algorithm>
#include <functional>

#include "ops/reference/reference_ops.h"
#include "ops/sampling.h"

namespace m4j::reference {
namespace {

SampleResult sample_row(const float* logits, const SampleItem& item, uint64_t* keys, float* scores) {
  const int64_t n = item.candidates;
  for (int64_t i = 0; i < n; ++i) {
    if (!is_finite_number(logits[i])) return {static_cast<int32_t>(-1 - i), logits[i]};
    scores[i] = flushed(logits[i]);
  }
  const float largest_logit = *std::max_element(scores, scores + n);
  uint64_t all = 0;
  for (int64_t i = 0; i < n; ++i) all += sample_weight(sample_exponent(scores[i], largest_logit, kNaturalScale));
  for (int64_t i = 0; i < item.n_recent; ++i) {
    const int32_t id = item.recent[i];
    if (id >= 0 && id < n) scores[id] = penalised(flushed(logits[id]), item.penalty);
  }
  const auto result = [&](int64_t id) {
    return SampleResult{static_cast<int32_t>(id),
                        item.log_prob != 0 ? sample_log_prob(flushed(logits[id]), largest_logit, all) : 0.0f};
  };
  const float largest = *std::max_element(scores, scores + n);
  if (item.scale == 0) return result(std::max_element(scores, scores + n) - scores);

  const auto weight = [&](uint64_t key) {
    return sample_weight(sample_exponent(score_of_key(key), largest, item.scale));
  };
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t key = sample_key(scores[i], i);
    if (weight(key) > 0) keys[count++] = key;
  }
  std::sort(keys, keys + count, std::greater<uint64_t>());
  count = std::min(count, item.top_k);
  if (item.top_p != 0) {
    uint64_t total = 0, before = 0;
    for (int64_t i = 0; i < count; ++i) total += weight(keys[i]);
    const uint64_t enough = enough_weight(total, item.top_p);
    int64_t kept = 0;
    for (; kept < count && before < enough; ++kept) before += weight(keys[kept]);
    count = kept;
  }
  uint64_t* const end =
      std::remove_if(keys, keys + count, [&](uint64_t key) { return weight(key) < item.min_weight; });
  std::sort(keys, end, [](uint64_t a, uint64_t b) { return id_of_key(a) < id_of_key(b); });
  uint64_t total = 0, running = 0;
  for (const uint64_t* key = keys; key < end; ++key) total += weight(*key);
  const uint64_t target = high_product(total, item.random);
  const uint64_t* key = keys;
  for (; (running += weight(*key)) <= target;) ++key;
  return result(id_of_key(*key));
}

}  // namespace

int64_t sample_scratch(int64_t vocab_size) { return 3 * vocab_size; }

void sample(const SampleArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.count, 1, &begin, &end);
  for (int64_t i = begin; i < end; ++i) {
    const SampleItem& item = a.items[i];
    if (item.candidates == 0) continue;
    uint64_t* const keys = reinterpret_cast<uint64_t*>(share.scratch);
    a.results[i] = sample_row(a.logits + item.row * a.ld_logits, item, keys, share.scratch + 2 * item.candidates);
  }
}

}  // namespace m4j::reference
