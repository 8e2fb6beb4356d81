#include "ops/reference/reference_ops.h"

namespace m4j::reference {

void conv1d(const Conv1dArgs& a, const Share& share) {
  const int64_t past = a.d_conv - 1;
  int64_t begin, end;
  share.range(a.channels, 1, &begin, &end);
  for (int64_t c = begin; c < end; ++c) {
    // Input s of the window followed by x.
    const auto input = [&](int64_t s) {
      return s < past ? a.window[s * a.channels + c] : a.x[(s - past) * a.ld_x + c];
    };
    for (int64_t t = 0; t < a.tokens; ++t) {
      double y = a.bias ? a.bias[c] : 0.0;
      for (int64_t k = 0; k < a.d_conv; ++k) y += static_cast<double>(a.weight[k * a.channels + c]) * input(t + k);
      a.out[t * a.ld_out + c] = static_cast<float>(a.silu ? silu(y) : y);
    }
    for (int64_t k = 0; k < past; ++k) a.window[k * a.channels + c] = input(a.tokens + k);
  }
}

}  // namespace m4j::reference
