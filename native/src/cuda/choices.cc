#include "cuda/choices.h"

#include <algorithm>
#include <cstring>

#include "ops/cuda/cuda_ops.h"
#include "runtime/failure.h"

namespace m4j::cuda {

void check_sample_vocab(int64_t vocab_size) {
  if (vocab_size <= kMaxGpuSampleVocab) return;
  fail(M4J_ERR_UNSUPPORTED, "sampling on the GPU from %lld logits, expected at most %lld",
       static_cast<long long>(vocab_size), static_cast<long long>(kMaxGpuSampleVocab));
}

void Choices::reserve(int64_t rows) {
  if (rows <= rows_) return;
  ++moves;
  rows_ = 0;
  memory_ = PinnedBuffer();  // first, so that old and new are not held at once
  memory_ = PinnedBuffer(align(item_bytes(rows)) + align(rows * static_cast<int64_t>(sizeof(SampleResult))));
  rows_ = rows;
  std::fill_n(items(), rows, SampleItem{});
}

void Choices::fill(const m4j_advance_args& args, int64_t rows, int64_t vocab_size) {
  for (int64_t i = 0; i < rows; ++i) {
    const bool chosen = i < args.n_seqs && args.samplings[i] != nullptr;
    items()[i] = chosen ? sample_item(*args.samplings[i], i, vocab_size, args.log_probs != nullptr) : SampleItem{};
  }
  pin_recent(rows);
}

void Choices::fill(const SampleItem* from, int64_t count) {
  std::copy_n(from, count, items());
  pin_recent(count);
}

void Choices::pin_recent(int64_t rows) {
  int64_t recent = 0;
  for (int64_t i = 0; i < rows; ++i) recent += items()[i].n_recent;
  if (recent > recent_capacity_) {
    recent_capacity_ = 0;
    recent_ = PinnedBuffer();
    recent_ = PinnedBuffer(2 * recent * static_cast<int64_t>(sizeof(int32_t)));
    recent_capacity_ = 2 * recent;
  }
  int32_t* to = reinterpret_cast<int32_t*>(recent_.data());
  for (int64_t i = 0; i < rows; ++i) {
    SampleItem& item = items()[i];
    if (item.n_recent == 0) continue;
    std::memcpy(to, item.recent, static_cast<std::size_t>(item.n_recent) * sizeof(int32_t));
    item.recent = to;
    to += item.n_recent;
  }
}

void Choices::hand_over(const m4j_advance_args& args) const {
  for (int64_t i = 0; i < args.n_seqs; ++i) {
    if (args.samplings[i] == nullptr) continue;
    args.sampled[i] = results()[i].token;
    if (args.log_probs != nullptr) args.log_probs[i] = results()[i].log_prob;
  }
}

}  // namespace m4j::cuda
