// What a run measures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace m4j::bench {

struct Plan {
  std::vector<std::string> models = {"mamba-130m", "mamba2-130m"};
  std::vector<std::string> dtypes = {"f32", "bf16"};
  std::vector<int64_t> prefill_lengths = {16, 128, 512, 2048};
  std::vector<int64_t> decode_batches = {1, 4, 16};
  std::vector<int64_t> contexts = {};
  std::vector<int> threads = {0};
  std::string simd_target;
  int repeat = 5;
  bool ops = true;

  const char* simd() const { return simd_target.empty() ? nullptr : simd_target.c_str(); }
  // The thread counts to run, 0 replaced by the engine's default.
  std::vector<int> thread_counts() const;
  // Throws std::invalid_argument that names the wrong value and the known ones.
  void validate() const;
};

// M4J_F32 … for "f32" …
int32_t dtype_of(const std::string& name);

// Types of matrices and activations for "f32" …, and for "bf16/bf16" both in bfloat16.
struct Form {
  int32_t weights, activations;
};
Form form_of(const std::string& name);

}  // namespace m4j::bench
