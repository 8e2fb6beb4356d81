#include "model/advance.h"

#include <algorithm>

#include "model/forward.h"
#include "runtime/checked.h"

namespace m4j {
namespace {

// Long input goes through the layers in blocks of so many tokens: enough to amortise reading the weights, few enough
// for bounded memory.
constexpr int64_t kBlockTokens = 512;

// Cuts the ragged batch into blocks. A sequence may be cut anywhere, since its state carries over; pieces of whole
// SSD chunks only keep the matrices large.
class BlockPlan {
 public:
  // Tokens between two cuts of a sequence are a multiple of `grain`, where that fits into a block.
  BlockPlan(const m4j_advance_args& args, const States::Lease& lease, int64_t vocab_size, int64_t capacity,
            int64_t grain, Segment* segments)
      : args_(args), lease_(lease), vocab_size_(vocab_size), capacity_(capacity), grain_(grain), segments_(segments) {}

  // False when all sequences are done.
  bool next(Block* block) {
    const int64_t first = done_ + fed_;
    *block = {.ids = args_.tokens + first,
              .tokens = 0,
              .segments = segments_,
              .n_segments = 0,
              .logits_mode = args_.logits_mode,
              .logits = nullptr,
              .n_last = 0};
    const int64_t first_finished = seq_;
    while (seq_ < args_.n_seqs) {
      const int64_t left = args_.offsets[seq_ + 1] - done_ - fed_;
      const int64_t take = piece(left, capacity_ - block->tokens, block->tokens == 0);
      if (take == 0) break;
      const SlotView slot = lease_.view(seq_);
      segments_[block->n_segments++] = {block->tokens, take, slot.conv, slot.ssm};
      block->tokens += take;
      fed_ += take;
      if (take < left) break;
      done_ = args_.offsets[++seq_];
      fed_ = 0;
    }
    block->n_last = seq_ - first_finished;
    if (args_.logits_mode == M4J_LOGITS_ALL) block->logits = args_.logits + first * vocab_size_;
    if (args_.logits_mode == M4J_LOGITS_LAST) block->logits = args_.logits + first_finished * vocab_size_;
    return block->tokens > 0;
  }

 private:
  int64_t piece(int64_t left, int64_t room, bool empty_block) const {
    if (left <= room) return left;
    const int64_t whole = room / grain_ * grain_;
    return whole > 0 || !empty_block ? whole : room;
  }

  const m4j_advance_args& args_;
  const States::Lease& lease_;
  const int64_t vocab_size_, capacity_, grain_;
  Segment* const segments_;
  int64_t seq_ = 0;   // the sequence to go on with
  int64_t done_ = 0;  // its offset
  int64_t fed_ = 0;   // tokens of it in earlier blocks
};

}  // namespace

void advance(States& states, const m4j_advance_args& args) {
  const Model& model = states.model();
  const Config& c = model.config;
  Engine& engine = *model.engine;
  States::Lease lease(states, "slots", args.slots, args.n_seqs);
  Engine::Turn turn(engine);

  const int64_t capacity = std::min(args.offsets[args.n_seqs], kBlockTokens);
  int64_t longest = 0;
  for (int64_t i = 0; i < args.n_seqs; ++i) longest = std::max(longest, args.offsets[i + 1] - args.offsets[i]);
  // Only whole batches of short pieces never meet the chunked path.
  const int64_t chunk_size = c.is_mamba2() && longest > kSsdStepTokens ? std::min(c.chunk_size, capacity) : 0;

  const int64_t activations = activation_floats(c, capacity);
  const int64_t segment_floats = checked_mul(capacity, sizeof(Segment) / sizeof(float));
  turn.reserve(checked_add(activations, segment_floats), forward_scratch_floats(model, engine.ops, chunk_size));
  const Activations act = carve_activations(c, capacity, turn.shared());
  Segment* const segments = reinterpret_cast<Segment*>(turn.shared() + activations);

  BlockPlan plan(args, lease, c.vocab_size, capacity, std::max<int64_t>(1, chunk_size), segments);
  for (Block block; plan.next(&block);) {
    const Pass pass{model, engine.ops, turn, act, block, chunk_size};
    turn.run([&](const Share& share) { forward(pass, share); });
  }
  for (int64_t i = 0; i < args.n_seqs; ++i) {
    lease.set_position(i, lease.position(i) + args.offsets[i + 1] - args.offsets[i]);
  }
}

}  // namespace m4j
