// What sampling reads and leaves, in page-locked host memory that the kernel uses itself: a copy of these few bytes would
// take longer. Captured graphs know the addresses of items and results, so parameters may change from step to step.
#pragma once

#include <cstdint>

#include "cuda/memory.h"
#include "mamba4j.h"
#include "ops/sampling.h"

namespace m4j::cuda {

// Refuses more logits than the kernel takes.
void check_sample_vocab(int64_t vocab_size);

class Choices {
 public:
  // Room for `rows` items, which do nothing until they are filled. What is there may move.
  void reserve(int64_t rows);
  // Items of all sequences of a call, each to choose from the row of its number; further rows do nothing. No kernel that
  // reads them may be running.
  void fill(const m4j_advance_args& args, int64_t rows, int64_t vocab_size);
  // The same of items that are ready but for the place of their recent ids.
  void fill(const SampleItem* from, int64_t count);
  // The results of all sequences, once they are there.
  void hand_over(const m4j_advance_args& args) const;

  SampleItem* items() const { return reinterpret_cast<SampleItem*>(memory_.data()); }
  SampleResult* results() const { return reinterpret_cast<SampleResult*>(memory_.data() + align(item_bytes(rows_))); }

  int64_t moves = 0;  // of items and results so far; what has moved may lie at an old address again

 private:
  void pin_recent(int64_t rows);
  static int64_t item_bytes(int64_t rows) { return rows * static_cast<int64_t>(sizeof(SampleItem)); }
  PinnedBuffer memory_;  // items, results
  PinnedBuffer recent_;  // ids of all sequences, one after the other
  int64_t rows_ = 0, recent_capacity_ = 0;
};

}  // namespace m4j::cuda
