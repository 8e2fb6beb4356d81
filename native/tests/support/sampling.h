// Rows of logits with parameters of every kind, for tests of sampling.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/reference/reference_ops.h"
#include "ops/sampling.h"
#include "support/random.h"

namespace m4j::test {

inline m4j_sampling greedy_sampling() { return {sizeof(m4j_sampling), 0, 0, 0, 0, 0, 1, 0, 1, nullptr, 0}; }
inline m4j_sampling random_sampling(float temperature, uint64_t seed) {
  m4j_sampling s = greedy_sampling();
  s.temperature = temperature;
  s.seed = seed;
  return s;
}

struct SampleProblem {
  int64_t rows, V;
  std::vector<float> logits;  // [rows, V]
  std::vector<m4j_sampling> samplings;
  std::vector<std::vector<int32_t>> recent;

  // Rows that differ in shape of the distribution and in every parameter; ties, penalties of either kind, padding.
  SampleProblem(int64_t rows, int64_t V, Random& random) : rows(rows), V(V) {
    const auto pick = [&](int32_t n) { return random.ids(1, n)[0]; };
    const auto number = [&](float low, float high) { return random.uniform(1, low, high)[0]; };
    for (int64_t r = 0; r < rows; ++r) {
      static constexpr float kSpreads[] = {0, 0.01f, 1, 3, 10, 100};
      std::vector<float> row = random.normal(V, kSpreads[pick(6)]);
      if (pick(3) == 0) {
        for (float& v : row) v = std::round(v * 4) / 4;  // ties
      }
      logits.insert(logits.end(), row.begin(), row.end());
      m4j_sampling s = random_sampling(pick(8) == 0 ? 0.0f : number(0.2f, 3), static_cast<uint64_t>(pick(1 << 30)));
      s.draw = static_cast<uint64_t>(pick(1000));
      if (pick(2) == 0) s.top_k = 1 + pick(static_cast<int32_t>(pick(2) == 0 ? std::min<int64_t>(V, 60) : V + 3));
      if (pick(2) == 0) s.top_p = number(0.01f, 1);
      if (pick(3) == 0) s.min_p = number(0, 0.3f);
      if (pick(3) == 0) s.candidates = 1 + pick(static_cast<int32_t>(V + 2));
      recent.emplace_back();
      if (pick(2) == 0) {
        s.repetition_penalty = number(0.5f, 3);
        for (const int32_t id : random.ids(pick(200), static_cast<int32_t>(V + 9))) recent.back().push_back(id - 4);
      }
      samplings.push_back(s);
    }
  }

  std::vector<SampleItem> items() const {
    std::vector<SampleItem> result;
    for (int64_t r = 0; r < rows; ++r) {
      m4j_sampling s = samplings[static_cast<size_t>(r)];
      s.recent = recent[static_cast<size_t>(r)].data();
      s.n_recent = static_cast<int64_t>(recent[static_cast<size_t>(r)].size());
      result.push_back(sample_item(s, r, V, true));
    }
    return result;
  }

  std::vector<SampleResult> expected() const {
    std::vector<float> scratch(static_cast<size_t>(reference::sample_scratch(V) + 2));
    std::vector<SampleResult> results(static_cast<size_t>(rows));
    const std::vector<SampleItem> all = items();
    reference::sample({logits.data(), V, all.data(), rows, results.data()},
                      {0, 1, reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch.data()) + 7) / 8 * 8), 0});
    return results;
  }

  std::string name(size_t r) const {
    const m4j_sampling& s = samplings[r];
    return "V " + std::to_string(V) + ", row " + std::to_string(r) + ", temperature " + std::to_string(s.temperature) +
           ", top_k " + std::to_string(s.top_k) + ", top_p " + std::to_string(s.top_p) + ", min_p " +
           std::to_string(s.min_p) + ", penalty " + std::to_string(s.repetition_penalty) + " on " +
           std::to_string(recent[r].size()) + ", candidates " + std::to_string(s.candidates);
  }
};

}  // namespace m4j::test
