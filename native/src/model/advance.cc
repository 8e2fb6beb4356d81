#include "model/advance.h"

#include <algorithm>
#include <type_traits>

#include "model/block_plan.h"
#include "model/forward.h"
#include "ops/sampling.h"
#include "runtime/checked.h"

namespace m4j {
namespace {

// Long input goes through the layers in blocks of so many tokens: enough to amortise reading the weights, few enough
// for bounded memory.
constexpr int64_t kBlockTokens = 512;

// What is chosen from the logits of a block, in the engine's workspace. Empty if the call chooses nothing.
struct Chooser {
  SampleItem* items = nullptr;      // [sequences that a block may end]
  SampleResult* results = nullptr;  // of the items
  int64_t* seqs = nullptr;          // whose items they are
  float* logits = nullptr;          // [sequences, V], unless the caller takes logits
  int64_t count = 0;

  // One walk over all buffers measures (workspace null) and carves. Returns floats.
  int64_t layout(const m4j_advance_args& args, int64_t capacity, int64_t vocab_size, float* workspace) {
    if (args.samplings == nullptr) return 0;
    const int64_t rows = std::min(args.n_seqs, capacity);
    int64_t used = 0;
    const auto take = [&](auto*& buffer, int64_t n) {
      using T = std::remove_reference_t<decltype(*buffer)>;
      buffer = workspace == nullptr ? nullptr : reinterpret_cast<T*>(workspace + used);
      used = checked_add(used, align_floats(checked_mul(n, sizeof(T) / sizeof(float))));
    };
    take(items, rows);
    take(results, rows);
    take(seqs, rows);
    take(logits, args.logits_mode == M4J_LOGITS_NONE ? checked_mul(rows, vocab_size) : 0);
    return used;
  }

  void add(const m4j_advance_args& args, int64_t seq, int64_t row, int64_t vocab_size) {
    if (args.samplings[seq] == nullptr) return;
    items[count] = sample_item(*args.samplings[seq], row, vocab_size, args.log_probs != nullptr);
    seqs[count++] = seq;
  }
  void hand_over(const m4j_advance_args& args) {
    for (int64_t i = 0; i < count; ++i) {
      args.sampled[seqs[i]] = results[i].token;
      if (args.log_probs != nullptr) args.log_probs[seqs[i]] = results[i].log_prob;
    }
    count = 0;
  }
};

void advance_on_cpu(const Model& model, const States::Lease& lease, const m4j_advance_args& args) {
  const Config& c = model.config;
  Engine& engine = *model.engine;
  Engine::Turn turn(engine);

  const int64_t capacity = std::min(args.offsets[args.n_seqs], kBlockTokens);
  int64_t longest = 0;
  for (int64_t i = 0; i < args.n_seqs; ++i) longest = std::max(longest, args.offsets[i + 1] - args.offsets[i]);
  // Only whole batches of short pieces never meet the chunked path.
  const int64_t chunk_size = c.is_mamba2() && longest > kSsdStepTokens ? std::min(c.chunk_size, capacity) : 0;

  const bool sampling = args.samplings != nullptr;
  const int32_t logits_mode = sampling && args.logits_mode == M4J_LOGITS_NONE ? M4J_LOGITS_LAST : args.logits_mode;
  const int64_t activations = activation_floats(c, capacity);
  const int64_t segment_floats = align_floats(checked_mul(capacity, sizeof(Segment) / sizeof(float)));
  Chooser chooser;
  const int64_t chooser_floats = chooser.layout(args, capacity, c.vocab_size, nullptr);
  turn.reserve(checked_add(checked_add(activations, segment_floats), chooser_floats),
               std::max(forward_scratch_floats(model, engine.ops, chunk_size),
                        sampling ? engine.ops.sample_scratch(c.vocab_size) : 0));
  const Activations act = carve_activations(c, capacity, turn.shared());
  Segment* const segments = reinterpret_cast<Segment*>(turn.shared() + activations);
  chooser.layout(args, capacity, c.vocab_size, turn.shared() + activations + segment_floats);

  BlockPlan plan(args.offsets, args.n_seqs, capacity, std::max<int64_t>(1, chunk_size));
  int64_t count = 0;
  const auto add_segment = [&](int64_t row, int64_t tokens, int64_t seq) {
    const SlotView slot = lease.view(seq);
    segments[count++] = {row, tokens, slot.conv, slot.ssm};
  };
  for (BlockPlan::Block cut; count = 0, plan.next(&cut, add_segment);) {
    const int64_t logits_row = logits_mode == M4J_LOGITS_ALL ? cut.first : cut.first_seq;
    const Block block = {.ids = args.tokens + cut.first,
                         .tokens = cut.tokens,
                         .segments = segments,
                         .n_segments = count,
                         .logits_mode = logits_mode,
                         .logits = args.logits_mode == M4J_LOGITS_NONE ? chooser.logits
                                                                       : args.logits + logits_row * c.vocab_size,
                         .n_last = cut.n_last};
    const Pass pass{model, engine.ops, turn, act, block, chunk_size};
    turn.run([&](const Share& share) { forward(pass, share); });
    if (!sampling) continue;
    for (int64_t i = 0; i < cut.n_last; ++i) {
      chooser.add(args, cut.first_seq + i,
                  logits_mode == M4J_LOGITS_ALL ? segments[i].row + segments[i].tokens - 1 : i, c.vocab_size);
    }
    const SampleArgs choice = {block.logits, c.vocab_size, chooser.items, chooser.count, chooser.results};
    turn.run([&](const Share& share) { engine.ops.sample(choice, share); });
    chooser.hand_over(args);
  }
}

void advance_on_gpu(States& states, const States::Lease& lease, const m4j_advance_args& args) {
  Vector<int64_t> slots(static_cast<std::size_t>(args.n_seqs));
  for (int64_t i = 0; i < args.n_seqs; ++i) slots[static_cast<std::size_t>(i)] = lease.cuda_slot(i);
  Engine& engine = *states.model().engine;
  Engine::Turn turn(engine);
  CudaDevice::call(engine.gpu->api.advance, states.gpu(), args, slots.data());
}

}  // namespace

void advance(States& states, const m4j_advance_args& args) {
  States::Lease lease(states, "slots", args.slots, args.n_seqs);
  advance(lease, args);
}

void advance(States::Lease& lease, const m4j_advance_args& args) {
  States& states = lease.states();
  if (states.gpu() == nullptr) {
    advance_on_cpu(states.model(), lease, args);
  } else {
    advance_on_gpu(states, lease, args);
  }
  for (int64_t i = 0; i < args.n_seqs; ++i) {
    lease.set_position(i, lease.position(i) + args.offsets[i + 1] - args.offsets[i]);
  }
}

}  // namespace m4j
