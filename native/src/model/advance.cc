#include "model/advance.h"

#include <algorithm>

#include "model/block_plan.h"
#include "model/forward.h"
#include "runtime/checked.h"

namespace m4j {
namespace {

// Long input goes through the layers in blocks of so many tokens: enough to amortise reading the weights, few enough
// for bounded memory.
constexpr int64_t kBlockTokens = 512;

void advance_on_cpu(const Model& model, const States::Lease& lease, const m4j_advance_args& args) {
  const Config& c = model.config;
  Engine& engine = *model.engine;
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

  BlockPlan plan(args.offsets, args.n_seqs, capacity, std::max<int64_t>(1, chunk_size));
  int64_t count = 0;
  const auto add_segment = [&](int64_t row, int64_t tokens, int64_t seq) {
    const SlotView slot = lease.view(seq);
    segments[count++] = {row, tokens, slot.conv, slot.ssm};
  };
  for (BlockPlan::Block cut; count = 0, plan.next(&cut, add_segment);) {
    const int64_t logits_row = args.logits_mode == M4J_LOGITS_ALL ? cut.first : cut.first_seq;
    const Block block = {.ids = args.tokens + cut.first,
                         .tokens = cut.tokens,
                         .segments = segments,
                         .n_segments = count,
                         .logits_mode = args.logits_mode,
                         .logits = args.logits_mode == M4J_LOGITS_NONE ? nullptr : args.logits + logits_row * c.vocab_size,
                         .n_last = cut.n_last};
    const Pass pass{model, engine.ops, turn, act, block, chunk_size};
    turn.run([&](const Share& share) { forward(pass, share); });
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
