#include <cfloat>
#include <limits>
#include <map>
#include <numeric>

#include "support/op_test.h"
#include "support/sampling.h"

namespace m4j::test {
namespace {

M4J_OP_TEST_SUITE(Sample);

// Tokens in `out`, logarithms of probabilities in `state`.
Outputs run_items(const Runner& r, const std::vector<float>& logits, int64_t V, const std::vector<SampleItem>& items) {
  const auto memory = r.in(logits, V);
  std::vector<SampleResult> results(items.size(), {INT32_MIN, NAN});
  const SampleArgs args = {memory.data(), memory.ld(), items.data(), static_cast<int64_t>(items.size()), results.data()};
  r.execute(r.ops.sample, args, r.ops.sample_scratch(V));
  Outputs outputs;
  for (const SampleResult& result : results) {
    outputs.out.push_back(static_cast<float>(result.token));
    outputs.state.push_back(result.log_prob);
  }
  return outputs;
}

// The token of one row.
SampleResult choose(const Runner& r, const std::vector<float>& logits, const m4j_sampling& s) {
  const auto V = static_cast<int64_t>(logits.size());
  const Outputs outputs = run_items(r, logits, V, {sample_item(s, 0, V, true)});
  return {static_cast<int32_t>(outputs.out[0]), outputs.state[0]};
}

TEST_P(Sample, EveryBackendChoosesTheSame) {
  for (const int64_t V : {1, 2, 13, 37, 207, 1025, 4098, 50277}) {
    const SampleProblem problem(V > 4000 ? 24 : 60, V, random);
    const auto run = [&](const Runner& r) { return run_items(r, problem.logits, V, problem.items()); };
    const Outputs outputs = V > 4000 ? run(plain_runner()) : run_everywhere(run);
    const std::vector<SampleResult> expected = problem.expected();
    for (size_t r = 0; r < expected.size(); ++r) {
      EXPECT_EQ(static_cast<int32_t>(outputs.out[r]), expected[r].token) << problem.name(r);
      EXPECT_EQ(outputs.state[r], expected[r].log_prob) << problem.name(r);
    }
  }
}

// The definition of ops/sampling.h in float64, by sorting everything.
std::vector<double> probabilities(const std::vector<float>& logits, const m4j_sampling& s) {
  const size_t n = s.candidates == 0 ? logits.size() : std::min(logits.size(), static_cast<size_t>(s.candidates));
  std::vector<double> scores(logits.begin(), logits.begin() + static_cast<int64_t>(n));
  for (int64_t i = 0; i < s.n_recent; ++i) {
    const int32_t id = s.recent[i];
    if (id < 0 || id >= static_cast<int32_t>(n)) continue;
    const double logit = logits[static_cast<size_t>(id)];
    scores[static_cast<size_t>(id)] = logit > 0 ? logit / s.repetition_penalty : logit * s.repetition_penalty;
  }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  const double largest = scores[order[0]];
  if (s.top_k > 0) order.resize(std::min(order.size(), static_cast<size_t>(s.top_k)));
  const auto weight = [&](size_t id) { return std::exp((scores[id] - largest) / s.temperature); };
  double total = 0, before = 0, kept = 0;
  for (const size_t id : order) total += weight(id);
  std::vector<double> result(logits.size());
  for (const size_t id : order) {
    if (before < s.top_p * total && weight(id) >= s.min_p) kept += result[id] = weight(id);
    before += weight(id);
  }
  for (double& p : result) p /= kept;
  return result;
}

TEST_P(Sample, DrawsHaveTheDistribution) {
  constexpr int kDraws = 4000;
  Random fixed(20260131);
  for (int round = 0; round < 40; ++round) {
    const int64_t V = 2 + fixed.ids(1, 14)[0];
    const std::vector<float> logits = fixed.normal(V, 1.5f);
    const std::vector<int32_t> recent = fixed.ids(3, static_cast<int32_t>(V));
    m4j_sampling s = random_sampling(fixed.uniform(1, 0.3f, 2.3f)[0], static_cast<uint64_t>(round));
    if (round % 3 == 0) s.top_k = 1 + fixed.ids(1, static_cast<int32_t>(V))[0];
    if (round % 2 == 0) s.top_p = fixed.uniform(1, 0.05f, 0.95f)[0];
    if (round % 5 == 0) s.min_p = fixed.uniform(1, 0, 0.5f)[0];
    if (round % 4 == 0) s.repetition_penalty = fixed.uniform(1, 0.5f, 2)[0];
    s.recent = recent.data(), s.n_recent = 3;
    const std::vector<double> expected = probabilities(logits, s);
    std::vector<SampleItem> items;
    for (s.draw = 0; s.draw < kDraws; ++s.draw) items.push_back(sample_item(s, 0, V, false));
    std::vector<double> found(static_cast<size_t>(V));
    for (const float token : run_items(plain_runner(), logits, V, items).out) found[static_cast<size_t>(token)] += 1.0 / kDraws;
    for (size_t id = 0; id < found.size(); ++id) {
      EXPECT_NEAR(found[id], expected[id], 5 * std::sqrt(expected[id] * (1 - expected[id]) / kDraws) + 1e-9)
          << "round " << round << ", id " << id;
    }
  }
}

TEST_P(Sample, EqualLogitsShareTheRandomNumbersInOrderOfIds) {
  const int64_t V = 10007;
  m4j_sampling s = random_sampling(0.7f, 42);
  for (s.draw = 0; s.draw < 50; ++s.draw) {
    const auto random_of = static_cast<double>(philox(s.seed, s.draw)) * 0x1p-64;
    EXPECT_EQ(choose(plain_runner(), std::vector<float>(V, 3.5f), s).token, static_cast<int32_t>(random_of * V));
  }
  // Filters among equals keep the lowest ids.
  s.top_k = 100;
  m4j_sampling half = random_sampling(0.7f, 42);
  half.top_p = 0.25f;
  for (s.draw = half.draw = 0; s.draw < 50; ++s.draw, ++half.draw) {
    EXPECT_LT(choose(plain_runner(), std::vector<float>(V, -1), s).token, 100);
    EXPECT_LE(choose(plain_runner(), std::vector<float>(V, -1), half).token, V / 4);
  }
}

TEST_P(Sample, LimitsOfTheParameters) {
  const std::vector<float> logits = random.normal(67, 2);
  const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  m4j_sampling s = random_sampling(1, run_seed());
  const auto with = [&](auto change) {
    m4j_sampling changed = s;
    change(changed);
    return choose(plain_runner(), logits, changed).token;
  };
  for (s.draw = 0; s.draw < 30; ++s.draw) {
    const int32_t plain = choose(plain_runner(), logits, s).token;
    EXPECT_EQ(with([](auto& c) { c.top_k = 67; }), plain);
    EXPECT_EQ(with([](auto& c) { c.top_k = INT64_MAX; }), plain);
    EXPECT_EQ(with([](auto& c) { c.candidates = INT64_MAX; }), plain);
    EXPECT_EQ(with([](auto& c) { c.repetition_penalty = 1; }), plain);
    EXPECT_EQ(with([](auto& c) { c.top_k = 1; }), best);
    EXPECT_EQ(with([](auto& c) { c.top_p = FLT_TRUE_MIN; }), best);
    EXPECT_EQ(with([](auto& c) { c.min_p = 1; }), best);
    EXPECT_EQ(with([](auto& c) { c.temperature = FLT_TRUE_MIN; }), best);
    EXPECT_EQ(with([](auto& c) { c.temperature = 0; }), best);
  }
}

TEST_P(Sample, GreedyTakesTheLowestIdAmongTheLargest) {
  EXPECT_EQ(choose(plain_runner(), {0, 3, 3, -1, 3}, greedy_sampling()).token, 1);
  EXPECT_EQ(choose(plain_runner(), {-0.0f, 0, -0.0f}, greedy_sampling()).token, 0);
  EXPECT_EQ(choose(plain_runner(), {-1e-40f, 1e-40f}, greedy_sampling()).token, 0);  // subnormal: zeros
  EXPECT_NEAR(choose(plain_runner(), {0, 3, 3, -1, 3}, greedy_sampling()).log_prob,
              -std::log(3 + std::exp(-3.0) + std::exp(-4.0)), 1e-6);
}

TEST_P(Sample, LogitsThatAreNoNumbersAreNamed) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const float temperature : {0.0f, 1.0f}) {
      const SampleResult r = choose(plain_runner(), {1, 2, bad, 0, NAN}, random_sampling(temperature, 1));
      EXPECT_EQ(r.token, -1 - 2);
      EXPECT_TRUE(std::isnan(bad) ? std::isnan(r.log_prob) : r.log_prob == bad);
      m4j_sampling padded = random_sampling(temperature, 1);
      padded.candidates = 2;
      EXPECT_GE(choose(plain_runner(), {1, 2, bad, 0, NAN}, padded).token, 0);
    }
  }
}

TEST_P(Sample, ExtremeValuesStayHarmless) {
  const std::vector<int32_t> recent = {0, 1, -1, 99, 0};
  for (const float temperature : {0.0f, FLT_TRUE_MIN, 1.0f, FLT_MAX}) {
    for (const float penalty : {0.1f, FLT_TRUE_MIN, FLT_MAX}) {
      m4j_sampling s = random_sampling(temperature, 3);
      s.repetition_penalty = penalty;
      s.recent = recent.data(), s.n_recent = 5;
      const std::vector<float> logits = {FLT_MAX, -FLT_MAX, 0, 1e-38f};
      const int32_t token = choose(plain_runner(), logits, s).token;
      EXPECT_TRUE(token >= 0 && token < 4) << token;
      if (penalty < 1 && temperature <= 1) {
        EXPECT_EQ(token, 0);
      }
    }
  }
}

TEST_P(Sample, ItemsWithoutCandidatesAreLeftAlone) {
  const std::vector<SampleItem> items = {SampleItem{}, sample_item(greedy_sampling(), 1, 3, true), SampleItem{}};
  const Outputs outputs = run_items(plain_runner(), {1, 2, 3, 6, 5, 4}, 3, items);
  EXPECT_EQ(outputs.out, (std::vector<float>{static_cast<float>(INT32_MIN), 0, static_cast<float>(INT32_MIN)}));
}

// Known answers of the authors' own library (Random123, kat_vectors).
TEST(SampleMath, Philox) {
  EXPECT_EQ(philox(0, 0), 0xe169c58d6627e8d5u);
  EXPECT_NE(philox(0, 1), philox(0, 0));
  EXPECT_NE(philox(1, 0), philox(0, 0));
}

TEST(SampleMath, WeightsAreExponentials) {
  Random random(run_seed());
  EXPECT_EQ(sample_weight(0), uint64_t{1} << kWeightBits);
  EXPECT_EQ(sample_weight(-64), 0u);
  for (const float y : random.uniform(20000, -39, 0)) {
    const double exact = std::exp2(40 + static_cast<double>(y));
    EXPECT_NEAR(static_cast<double>(sample_weight(y)), exact, 3e-7 * exact + 1) << y;
  }
}

TEST(SampleMath, KeysOrderByScoreThenId) {
  const std::vector<float> ascending = {-FLT_MAX, -1, -FLT_MIN, 0, FLT_MIN, 1, FLT_MAX};
  for (size_t i = 0; i < ascending.size(); ++i) {
    const uint64_t key = sample_key(ascending[i], 77);
    EXPECT_EQ(score_of_key(key), ascending[i]);
    EXPECT_EQ(id_of_key(key), 77);
    EXPECT_GT(sample_key(ascending[i], 76), key);
    if (i > 0) {
      EXPECT_GT(key, sample_key(ascending[i - 1], 0));
    }
  }
}

}  // namespace
}  // namespace m4j::test
