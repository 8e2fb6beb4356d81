#include "ops/half.h"
#include "ops/reference/reference_ops.h"

namespace m4j::reference {

void embedding(const EmbeddingArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = a.ids[t] * a.ld_table;
    for (int64_t i = 0; i < a.d_model; ++i) a.out[t * a.ld_out + i] = load_f32(a.table, a.table_dtype, row + i);
  }
}

}  // namespace m4j::reference
