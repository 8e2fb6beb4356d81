// Ragged batches for tests, and arrays whose rows lie far apart.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "device_array.h"
#include "ops/cuda/cuda_ops.h"
#include "support/op_test.h"

namespace m4j::cuda::test {

using m4j::test::append;
using m4j::test::expect_close;
using m4j::test::expect_same_bits;
using m4j::test::Expected;
using m4j::test::Outputs;
using m4j::test::Random;
using m4j::test::slice_rows;

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// Relative norm error allowed to results rounded to `dtype`.
inline double tolerance_of(DType dtype) { return dtype == DType::kF32 ? 1e-5 : dtype == DType::kF16 ? 1e-3 : 5e-3; }

// To states rounded once to bfloat16, up or down by chance: 0.41 units in the last place, of 2^-8 ... 2^-7 of a number.
constexpr double kRoundedStates = 4e-3;

inline std::string name_of(DType dtype) {
  return dtype == DType::kF32 ? "f32" : dtype == DType::kF16 ? "f16" : "bf16";
}

// The same problem with states that bfloat16 holds.
template <typename Problem>
Problem with_bfloat16_states(Problem problem) {
  problem.state_type = DType::kBF16;
  problem.states = rounded(problem.states, DType::kBF16);
  return problem;
}

// Segments of the given lengths, one after the other, in slots of a random order with one to spare.
class Ragged {
 public:
  Ragged(const std::vector<int64_t>& lengths, Random& random) : slots(lengths.size() + 1) {
    std::vector<int64_t> order(slots);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(random.ids(1, 1 << 30)[0]));
    for (size_t i = 0; i < lengths.size(); ++i) {
      items.push_back({tokens, lengths[i], order[i]});
      tokens += lengths[i];
      longest = std::max(longest, lengths[i]);
    }
    upload();
  }
  Ragged(std::vector<Segment> segments, int64_t slot_count) : items(std::move(segments)), slots(slot_count) {
    for (const Segment& s : items) {
      tokens += s.tokens;
      longest = std::max(longest, s.tokens);
    }
    upload();
  }
  Ragged(const Ragged&) = delete;
  ~Ragged() { cudaFree(device_); }

  // With a bound of the longest that may be higher than it is, as in a replayed graph.
  Segments segments(int64_t bound = 0) const {
    return {device_, static_cast<int64_t>(items.size()), tokens, std::max(bound, longest)};
  }

  std::vector<Segment> items;
  int64_t slots, tokens = 0, longest = 0;

 private:
  void upload() {
    must(cudaMalloc(&device_, items.size() * sizeof(Segment)));
    must(cudaMemcpy(device_, items.data(), items.size() * sizeof(Segment), cudaMemcpyHostToDevice));
  }
  Segment* device_ = nullptr;
};

// One block of GPU memory of which tests use places far apart.
class FarMemory {
 public:
  FarMemory(DType dtype, int64_t elements) : dtype_(dtype) {
    must(cudaMalloc(&base_, static_cast<size_t>(dtype_bytes(dtype, elements))));
  }
  FarMemory(const FarMemory&) = delete;
  ~FarMemory() { cudaFree(base_); }

  void* at(int64_t element) const { return static_cast<char*>(base_) + dtype_bytes(dtype_, element); }
  void write(int64_t element, const std::vector<float>& values) const {
    const DeviceArray from(dtype_, values, static_cast<int64_t>(values.size()));
    must(cudaMemcpy(at(element), from.data(), bytes(values.size()), cudaMemcpyDeviceToDevice));
  }
  std::vector<float> read(int64_t element, int64_t count) const {
    const DeviceArray to(dtype_, 1, count);
    must(cudaMemcpy(to.data(), at(element), bytes(static_cast<size_t>(count)), cudaMemcpyDeviceToDevice));
    return to.read();
  }

  // Rows that begin less than 2^31 bytes apart.
  void write_rows(int64_t element, int64_t ld, const std::vector<float>& values, int64_t columns) const {
    const DeviceArray from(dtype_, values, columns);
    copy_rows(at(element), ld, from.data(), columns, static_cast<int64_t>(values.size()) / columns, columns);
  }
  std::vector<float> read_rows(int64_t element, int64_t ld, int64_t rows, int64_t columns) const {
    const DeviceArray to(dtype_, rows, columns);
    copy_rows(to.data(), columns, at(element), ld, rows, columns);
    return to.read();
  }

 private:
  void copy_rows(void* to, int64_t ld_to, const void* from, int64_t ld_from, int64_t rows, int64_t columns) const {
    const auto width = [&](int64_t count) { return bytes(static_cast<size_t>(count)); };
    must(cudaMemcpy2D(to, width(ld_to), from, width(ld_from), width(columns), static_cast<size_t>(rows),
                      cudaMemcpyDeviceToDevice));
  }
  size_t bytes(size_t count) const { return static_cast<size_t>(dtype_bytes(dtype_, static_cast<int64_t>(count))); }
  const DType dtype_;
  void* base_ = nullptr;
};

// The m-th of consecutive parts of `values`.
inline std::vector<float> part_of(const std::vector<float>& values, int64_t size, int64_t m) {
  return slice_rows(values, size, m, m + 1);
}

}  // namespace m4j::cuda::test
