// Rows of the embedding table, widened to float32. Members take tokens.
#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/embedding.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {
namespace {

template <class W>
void embedding(const EmbeddingArgs& a, const Share& share) {
  constexpr int64_t kStep = W::kVectors * kLanes;
  int64_t begin, end;
  share.range(a.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    const uint8_t* row = static_cast<const uint8_t*>(a.table) + W::offset(a.ids[t] * a.ld_table);
    float* out = a.out + t * a.ld_out;
    int64_t k = 0;
    for (; k + kStep <= a.d_model; k += kStep) {
      ArrayVec v[W::kVectors];
      W::load(row + W::offset(k), v);
      for (int i = 0; i < W::kVectors; ++i) hn::StoreU(v[i], VecTag(), out + k + i * kLanes);
    }
    if constexpr (W::kVectors == 1) {
      for (; k < a.d_model; ++k) out[k] = W::widen(row + W::offset(k));
    }
  }
}

}  // namespace

void Embedding(const EmbeddingArgs& a, const Share& share) {
  switch (a.table_dtype) {
    case DType::kF32: return embedding<F32Weight>(a, share);
    case DType::kBF16: return embedding<Bf16Weight>(a, share);
    case DType::kF16: return embedding<F16Weight>(a, share);
    case DType::kQ8_0: return embedding<Q8Weight>(a, share);
    case DType::kQ4_0: return embedding<Q4Weight>(a, share);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();
