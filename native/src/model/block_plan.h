// Cuts a ragged batch into blocks of bounded size. A sequence may be cut anywhere, since its state carries over; pieces
// of whole SSD chunks only keep the matrices large.
#pragma once

#include <cstdint>

namespace m4j {

class BlockPlan {
 public:
  // Sequence i is tokens offsets[i] ... offsets[i + 1] - 1. Blocks hold up to `capacity` tokens; tokens between two cuts
  // of a sequence are a multiple of `grain`, where that fits into a block.
  BlockPlan(const int64_t* offsets, int64_t n_seqs, int64_t capacity, int64_t grain)
      : offsets_(offsets), n_seqs_(n_seqs), capacity_(capacity), grain_(grain) {}

  struct Block {
    int64_t first;       // token of the batch
    int64_t tokens;
    int64_t pieces;      // of sequences, one after the other
    int64_t first_seq;   // of the first piece
    int64_t n_last;      // the first n_last pieces end their sequences
    int64_t longest;     // tokens of the longest piece
  };

  // Calls emit(row, tokens, seq) for each piece; false when all sequences are done.
  template <typename Emit>
  bool next(Block* block, Emit&& emit) {
    *block = {.first = done_ + fed_, .tokens = 0, .pieces = 0, .first_seq = seq_, .n_last = 0, .longest = 0};
    while (seq_ < n_seqs_) {
      const int64_t left = offsets_[seq_ + 1] - done_ - fed_;
      const int64_t take = piece(left, capacity_ - block->tokens, block->tokens == 0);
      if (take == 0) break;
      emit(block->tokens, take, seq_);
      ++block->pieces;
      block->tokens += take;
      if (take > block->longest) block->longest = take;
      fed_ += take;
      if (take < left) break;
      done_ = offsets_[++seq_];
      fed_ = 0;
    }
    block->n_last = seq_ - block->first_seq;
    return block->tokens > 0;
  }

 private:
  int64_t piece(int64_t left, int64_t room, bool empty_block) const {
    if (left <= room) return left;
    const int64_t whole = room / grain_ * grain_;
    return whole > 0 || !empty_block ? whole : room;
  }

  const int64_t* const offsets_;
  const int64_t n_seqs_, capacity_, grain_;
  int64_t seq_ = 0;   // the sequence to go on with
  int64_t done_ = 0;  // its offset
  int64_t fed_ = 0;   // tokens of it in earlier blocks
};

}  // namespace m4j
