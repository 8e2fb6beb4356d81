// Reader for the safetensors files of tests/goldens: float32 tensors, trusted.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace m4j::test {

struct GoldenTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// The tensors of the file by name. Throws std::runtime_error if it is not there or holds something else.
std::map<std::string, GoldenTensor> read_golden(const std::string& file_name);

}  // namespace m4j::test
