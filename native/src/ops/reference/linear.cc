#include "ops/half.h"
#include "ops/reference/reference_ops.h"

namespace m4j::reference {

void linear(const LinearArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.out_dim, 1, &begin, &end);
  for (int64_t o = begin; o < end; ++o) {
    for (int64_t t = 0; t < a.tokens; ++t) {
      double sum = a.bias ? a.bias[o] : 0.0;
      for (int64_t i = 0; i < a.in; ++i) {
        sum += static_cast<double>(a.x[t * a.ld_x + i]) * load_f32(a.weight, a.weight_dtype, o * a.ld_weight + i);
      }
      a.out[t * a.ld_out + o] = static_cast<float>(sum);
    }
  }
}

}  // namespace m4j::reference
