#include "ops/reference/reference_ops.h"

namespace m4j {

const Ops& reference_ops() {
  static constexpr Ops kOps = {
      .name = "reference",
      .embedding = reference::embedding,
      .rms_norm = reference::rms_norm,
      .linear = reference::linear,
      .conv1d = reference::conv1d,
      .selective_scan = reference::selective_scan,
      .ssd_step = reference::ssd_step,
      .ssd_chunk = reference::ssd_chunk,
      .softmax = reference::softmax,
      .log_softmax = reference::log_softmax,
      .sample = reference::sample,
      .ssd_chunk_scratch = reference::ssd_chunk_scratch,
      .linear_scratch = [](int64_t, DType) -> int64_t { return 0; },
      .sample_scratch = reference::sample_scratch,
  };
  return kOps;
}

}  // namespace m4j
