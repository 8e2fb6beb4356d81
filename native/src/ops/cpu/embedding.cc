// Rows of the embedding table, widened to float32. Members take tokens.
#include <cstring>

#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/embedding.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

template <bool kBf16>
HWY_INLINE Vec widen(const uint16_t* p) {
  return kBf16 ? widen_bf16(p) : widen_f16(p);
}

template <bool kBf16>
void widen_row(const uint16_t* row, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hwy::HWY_NAMESPACE::StoreU(widen<kBf16>(row + i), VecTag(), out + i);
  if (i < n) {
    uint16_t rest[kLanes] = {};
    std::memcpy(rest, row + i, static_cast<size_t>(n - i) * sizeof(uint16_t));
    store_part(widen<kBf16>(rest), out + i, n - i);
  }
}

}  // namespace

void Embedding(const EmbeddingArgs& a, const Share& share) {
  int64_t begin, end;
  share.range(a.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t offset = a.ids[t] * a.ld_table;
    float* out = a.out + t * a.ld_out;
    switch (a.table_dtype) {
      case DType::kF32:
        std::memcpy(out, static_cast<const float*>(a.table) + offset, static_cast<size_t>(a.d_model) * sizeof(float));
        break;
      case DType::kF16:
        widen_row<false>(static_cast<const uint16_t*>(a.table) + offset, a.d_model, out);
        break;
      case DType::kBF16:
        widen_row<true>(static_cast<const uint16_t*>(a.table) + offset, a.d_model, out);
        break;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
