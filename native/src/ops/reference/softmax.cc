#include <algorithm>

#include "ops/reference/reference_ops.h"

namespace m4j::reference {
namespace {

// Largest element of the row and the sum of exp(x - largest).
struct RowSum {
  double max;
  double sum;
};

RowSum row_sum(const float* x, int64_t n) {
  const double max = *std::max_element(x, x + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - max);
  return {max, sum};
}

}  // namespace

void softmax(const SoftmaxArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    const float* x = a.x + t * a.ld_x;
    const auto [max, sum] = row_sum(x, a.n);
    for (int64_t i = 0; i < a.n; ++i) a.out[t * a.ld_out + i] = static_cast<float>(std::exp(x[i] - max) / sum);
  }
}

void log_softmax(const SoftmaxArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    const float* x = a.x + t * a.ld_x;
    const auto [max, sum] = row_sum(x, a.n);
    const double log_sum = max + std::log(sum);
    for (int64_t i = 0; i < a.n; ++i) a.out[t * a.ld_out + i] = static_cast<float>(x[i] - log_sum);
  }
}

}  // namespace m4j::reference
