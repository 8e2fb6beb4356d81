// The same tokens as the scalar reference chooses, from the same logits.
#include "device_array.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/sampling.h"
#include "support/op_test.h"
#include "support/sampling.h"

namespace m4j::cuda::test {
namespace {

using m4j::test::Random;
using m4j::test::SampleProblem;

// Items, recent ids and results in page-locked memory, as a call of m4j_advance has them.
std::vector<SampleResult> run(const std::vector<float>& logits, int64_t V, std::vector<SampleItem> items, int64_t ld) {
  const DeviceArray memory(DType::kF32, logits, V, ld);
  SampleItem* pinned_items = nullptr;
  SampleResult* pinned_results = nullptr;
  int32_t* recent = nullptr;
  int64_t n_recent = 1;
  for (const SampleItem& item : items) n_recent += item.n_recent;
  must(cudaMallocHost(&pinned_items, items.size() * sizeof(SampleItem)));
  must(cudaMallocHost(&pinned_results, items.size() * sizeof(SampleResult)));
  must(cudaMallocHost(&recent, static_cast<size_t>(n_recent) * sizeof(int32_t)));
  int32_t* to = recent;
  for (size_t i = 0; i < items.size(); ++i) {
    std::copy_n(items[i].recent, items[i].n_recent, to);
    items[i].recent = to;
    to += items[i].n_recent;
    pinned_items[i] = items[i];
    pinned_results[i] = {INT32_MIN, NAN};
  }
  sample({memory.floats(), ld, V, pinned_items, static_cast<int64_t>(items.size()), pinned_results}, nullptr);
  must(cudaDeviceSynchronize());
  memory.read();  // its guards
  std::vector<SampleResult> results(pinned_results, pinned_results + items.size());
  cudaFreeHost(pinned_items);
  cudaFreeHost(pinned_results);
  cudaFreeHost(recent);
  return results;
}

void expect_same(const std::vector<SampleResult>& actual, const std::vector<SampleResult>& expected,
                 const SampleProblem& problem) {
  for (size_t r = 0; r < expected.size(); ++r) {
    EXPECT_EQ(actual[r].token, expected[r].token) << problem.name(r);
    // float64 logarithms of two libraries, rounded to float32
    EXPECT_NEAR(actual[r].log_prob, expected[r].log_prob, 1e-6f * (1 + std::fabs(expected[r].log_prob)));
  }
}

TEST(CudaSample, TokensEqualTheReferences) {
  Random random(m4j::test::run_seed());
  SCOPED_TRACE("M4J_TEST_SEED=" + std::to_string(m4j::test::run_seed()));
  for (const int64_t V : {1, 2, 13, 37, 207, 513, 1025, 4098, 8193, 50277, 50280, 130001}) {
    if (random.left_out()) continue;
    const SampleProblem problem(V > 10000 ? 64 : 200, V, random);
    const std::vector<SampleResult> expected = problem.expected();
    const int64_t ld = V + random.ids(1, 5)[0];
    const std::vector<SampleResult> actual = run(problem.logits, V, problem.items(), ld);
    expect_same(actual, expected, problem);
    const std::vector<SampleResult> again = run(problem.logits, V, problem.items(), V);
    for (size_t r = 0; r < again.size(); ++r) {
      EXPECT_EQ(again[r].token, actual[r].token);
      EXPECT_EQ(again[r].log_prob, actual[r].log_prob);
    }
  }
}

TEST(CudaSample, ARowIsSampledAloneAsInABatch) {
  Random random(m4j::test::run_seed());
  const SampleProblem problem(40, 17011, random);  // two blocks a row in the batch on an H200, eight alone
  const std::vector<SampleItem> all = problem.items();
  std::vector<SampleItem> items;
  for (const size_t r : random.some_of(all.size(), 2)) items.push_back(all[r]);
  const std::vector<SampleResult> batch = run(problem.logits, problem.V, items, problem.V);
  for (size_t i = 0; i < items.size(); ++i) {
    const std::vector<SampleResult> alone = run(problem.logits, problem.V, {items[i]}, problem.V);
    EXPECT_EQ(alone[0].token, batch[i].token);
    EXPECT_EQ(alone[0].log_prob, batch[i].log_prob);
  }
}

// From eight blocks a row to one, at lengths at which blocks and warps get unequal parts or none.
TEST(CudaSample, RowsSharedByBlocks) {
  Random random(m4j::test::run_seed());
  for (const int64_t V : {4097, 8191, 16387, 24579, 50277, 65537}) {
    for (const int64_t count : {1, 3, 16, 17, 33, 67}) {
      if (random.left_out()) continue;
      const SampleProblem problem(count, V, random);
      expect_same(run(problem.logits, V, problem.items(), V + count % 4), problem.expected(), problem);
    }
  }
}

// Filters that end among many equal or nearly equal scores: bins are divided until few keys are left in one.
TEST(CudaSample, CrowdedBins) {
  Random random(m4j::test::run_seed());
  for (const int64_t V : {9001, 50280, 100003}) {
    for (const float spread : {1e-3f, 1e-6f, 0.0f}) {
      if (random.left_out()) continue;
      const std::vector<size_t> rows = random.some_of(12, 1);
      const auto count = static_cast<int64_t>(rows.size());
      SampleProblem problem(count, V, random);
      problem.logits = random.normal(count * V, spread);
      for (float& v : problem.logits) v += 7;
      for (size_t i = 0; i < rows.size(); ++i) {
        const size_t r = rows[i];
        m4j_sampling& s = problem.samplings[i] = m4j::test::random_sampling(0.8f, r);
        problem.recent[i].clear();
        if (r % 3 != 0) s.top_p = 0.03f + 0.08f * static_cast<float>(r);
        if (r % 3 != 1) s.top_k = static_cast<int64_t>(r) * (V / 17) + 17;
      }
      expect_same(run(problem.logits, V, problem.items(), V), problem.expected(), problem);
    }
  }
}

TEST(CudaSample, LogitsThatAreNoNumbersAreNamed) {
  for (const int64_t V : {5000, 50000}) {
    std::vector<float> logits(static_cast<size_t>(V), 1.0f);
    logits[4321] = -INFINITY, logits[4322] = NAN, logits.back() = INFINITY;
    for (const float temperature : {0.0f, 1.0f}) {
      m4j_sampling s = m4j::test::random_sampling(temperature, 1), padded = s;
      padded.candidates = 4321;
      const auto results = run(logits, V, {sample_item(s, 0, V, false), sample_item(padded, 0, V, true), {}}, V);
      EXPECT_EQ(results[0].token, -1 - 4321);
      EXPECT_EQ(results[0].log_prob, -INFINITY);
      EXPECT_GE(results[1].token, 0);
      EXPECT_EQ(results[2].token, INT32_MIN);
    }
  }
}

TEST(CudaSample, LargestVocabularyAndOffsetsBeyond32Bits) {
  Random random(m4j::test::run_seed());
  const int64_t V = kMaxGpuSampleVocab, far = int64_t{1} << 30;
  SampleProblem problem(3, V, random);
  float* memory = nullptr;
  must(cudaMalloc(&memory, static_cast<size_t>(2 * far + V) * 4));
  for (int64_t r = 0; r < 3; ++r) {
    must(cudaMemcpy(memory + r * far, problem.logits.data() + r * V, static_cast<size_t>(V) * 4, cudaMemcpyHostToDevice));
  }
  SampleItem* items = nullptr;
  SampleResult* results = nullptr;
  must(cudaMallocHost(&items, 3 * sizeof(SampleItem)));
  must(cudaMallocHost(&results, 3 * sizeof(SampleResult)));
  for (auto& ids : problem.recent) ids.clear();
  const std::vector<SampleItem> wanted = problem.items();
  std::copy(wanted.begin(), wanted.end(), items);
  sample({memory, far, V, items, 3, results}, nullptr);
  must(cudaDeviceSynchronize());
  expect_same({results, results + 3}, problem.expected(), problem);
  cudaFreeHost(items);
  cudaFreeHost(results);
  cudaFree(memory);
}

}  // namespace
}  // namespace m4j::cuda::test
