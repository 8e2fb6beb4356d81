#include "plan.h"

#include <mamba4j.h>

#include <stdexcept>

#include "ops/ops.h"
#include "random_model.h"
#include "runtime/team.h"

namespace m4j::bench {

int32_t dtype_of(const std::string& name) {
  if (name == "f32") return M4J_F32;
  if (name == "f16") return M4J_F16;
  if (name == "bf16") return M4J_BF16;
  if (name == "int8") return M4J_Q8_0;
  if (name == "int4") return M4J_Q4_0;
  throw std::invalid_argument("dtype '" + name + "' is unknown; known: f32, f16, bf16, int8, int4, bf16/bf16");
}

Form form_of(const std::string& name) {
  if (name == "bf16/bf16") return {M4J_BF16, M4J_BF16};
  return {dtype_of(name), M4J_F32};
}

std::vector<int> Plan::thread_counts() const {
  std::vector<int> counts;
  for (int t : threads) counts.push_back(t == 0 ? default_thread_count() : t);
  return counts;
}

void Plan::validate() const {
  for (const std::string& m : models)
    if (find_shape(m) == nullptr) throw std::invalid_argument("model shape '" + m + "' is unknown; see --list");
  for (const std::string& d : dtypes) form_of(d);
  const auto positive = [](const char* option, const std::vector<int64_t>& values) {
    for (int64_t v : values)
      if (v < 1) throw std::invalid_argument(std::string(option) + " takes numbers from 1 on, not " + std::to_string(v));
  };
  positive("--prefill", prefill_lengths);
  positive("--decode", decode_batches);
  positive("--context", contexts);
  for (int t : threads)
    if (t < 0 || t > 1024) throw std::invalid_argument("--threads takes 0 to 1024, not " + std::to_string(t));
  if (find_ops(simd()) == nullptr)
    throw std::invalid_argument("--simd '" + simd_target + "' is not among: " + m4j_simd_targets());
}

}  // namespace m4j::bench
