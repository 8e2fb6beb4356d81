// Tensors for the public operations in every order of dimensions, with and without gaps, in poisoned memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "mamba4j.h"

namespace m4j::test {

enum class Order { kRowMajor, kReversed, kGaps, kNegative };
inline constexpr Order kOrders[] = {Order::kRowMajor, Order::kReversed, Order::kGaps, Order::kNegative};

class Strided {
 public:
  // An absent tensor.
  Strided() : t_{} {}
  Strided(Strided&&) = default;  // the storage stays where it is
  Strided& operator=(Strided&&) = default;

  // values: row-major, or empty for an output.
  Strided(const std::vector<int64_t>& shape, const std::vector<float>& values, Order order) : t_{} {
    t_.dtype = M4J_F32;
    t_.rank = static_cast<int32_t>(shape.size());
    int64_t stride = order == Order::kGaps ? 3 : 1;
    for (int i = 0; i < t_.rank; ++i) {
      const int dim = order == Order::kReversed ? i : t_.rank - 1 - i;  // from the fastest
      t_.shape[dim] = shape[static_cast<size_t>(dim)];
      t_.strides[dim] = stride;
      stride = stride * t_.shape[dim] + (order == Order::kGaps ? 2 : 0);
    }
    storage_.assign(static_cast<size_t>(stride), NAN);
    t_.data = storage_.data();
    if (order == Order::kNegative) {  // the last dimension runs backwards
      const int last = t_.rank - 1;
      t_.data = storage_.data() + (t_.shape[last] - 1) * t_.strides[last];
      t_.strides[last] = -t_.strides[last];
    }
    if (values.empty()) return;
    for (int64_t i = 0; i < size(); ++i) at(i) = values[static_cast<size_t>(i)];
  }

  const m4j_tensor& tensor() const { return t_; }
  std::vector<float> values() const {
    std::vector<float> v;
    for (int64_t i = 0; i < size(); ++i) v.push_back(at(i));
    return v;
  }
  // All elements that the memory holds, those of no index included; tensor().data points into it.
  const std::vector<float>& storage() const { return storage_; }
  // Elements that belong to no index are as they were.
  bool gaps_untouched() const {
    size_t written = 0;
    for (const float x : storage_) written += std::isnan(x) ? 0 : 1;
    return written <= static_cast<size_t>(size());
  }

 private:
  int64_t size() const {
    int64_t n = t_.data == nullptr ? 0 : 1;
    for (int i = 0; i < t_.rank; ++i) n *= t_.shape[i];
    return n;
  }
  float& at(int64_t index) const {  // row-major index
    int64_t offset = 0;
    for (int i = t_.rank - 1; i >= 0; --i) {
      offset += index % t_.shape[i] * t_.strides[i];
      index /= t_.shape[i];
    }
    return static_cast<float*>(t_.data)[offset];
  }
  std::vector<float> storage_;
  m4j_tensor t_;
};

}  // namespace m4j::test
