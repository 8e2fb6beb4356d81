// Long input goes through the layers in blocks. A batch of single tokens, the decode step, is captured as a CUDA graph
// for each bucket of batch sizes: launching some hundred kernels one by one would take longer than they run.
#include "cuda/advance.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "cuda/forward.h"
#include "model/block_plan.h"

namespace m4j::cuda {
namespace {

// Tokens of a block: the fewest fill the card with products; scans gain from more sequences at a time, where the card has
// memory for their activations.
constexpr int64_t kFewestBlockTokens = 4096, kMostBlockTokens = 16384;
constexpr int64_t kActivationShare = 32;  // of the card's memory
constexpr int64_t kCutTokens = 256;  // blocks end at multiples of it, which suits all chunked kernels
constexpr int64_t kMaxGraphRows = 256;

// What a call asks for beside the states.
enum Outputs { kNoOutputs = 0, kLogits = 1, kTokens = 2 };

int outputs_of(const m4j_advance_args& args) {
  return (args.logits_mode == M4J_LOGITS_NONE ? kNoOutputs : kLogits) | (args.samplings == nullptr ? kNoOutputs : kTokens);
}

// Batch sizes that have a graph: rows between two of them are filled up.
int64_t bucket(int64_t rows) {
  if (rows <= 4) return rows;
  const int64_t step = rows <= 32 ? 4 : rows <= 128 ? 16 : 64;
  return (rows + step - 1) / step * step;
}

// Pinned memory of the graphs: ids, segments, logits, and whether a kernel of a whole step is done.
struct Staging {
  int32_t* ids;
  Segment* segments;
  float* logits;
  unsigned* done;
  int64_t bytes;

  Staging(char* base, int64_t rows, int64_t vocab_size) {
    const int64_t segments_at = align(rows * 4), logits_at = segments_at + align(rows * static_cast<int64_t>(sizeof(Segment)));
    ids = reinterpret_cast<int32_t*>(base);
    segments = reinterpret_cast<Segment*>(base + segments_at);
    logits = reinterpret_cast<float*>(base + logits_at);
    const int64_t done_at = logits_at + align(rows * vocab_size * 4);
    done = reinterpret_cast<unsigned*>(base + done_at);
    bytes = done_at + align(static_cast<int64_t>(sizeof(unsigned)));
  }
};

// Inputs of a pass in GPU memory, in front of the activations.
struct Inputs {
  int32_t* ids;
  Segment* segments;
  int64_t bytes;

  Inputs(char* base, int64_t tokens, int64_t segment_count) {
    ids = reinterpret_cast<int32_t*>(base);
    segments = reinterpret_cast<Segment*>(base + align(tokens * 4));
    bytes = align(tokens * 4) + align(segment_count * static_cast<int64_t>(sizeof(Segment)));
  }
};

void to_device(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream), "upload of tokens");
}

void to_host(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream), "download of logits");
}

// Bytes of workspace of a step.
int64_t step_bytes(const Model& m, int64_t rows) {
  DecodeStepArgs fused;
  if (m.decode_step_args(rows, &fused)) return rows * m.config.vocab_size * 4;
  return Inputs(nullptr, rows, rows).bytes + activation_bytes(m, {nullptr, rows, rows, 1});
}

// From logits [rows, V] to pinned memory: tokens, the logits themselves, or both.
void hand_out(States& states, int64_t rows, int outputs, const float* logits, float* to) {
  const int64_t V = states.model.config.vocab_size;
  const cudaStream_t stream = states.model.engine.stream;
  if (outputs & kTokens) sample({logits, V, V, states.choices.items(), rows, states.choices.results()}, stream);
  if (outputs & kLogits) to_host(to, logits, rows * V * 4, stream);
}

// What the kernel of a whole step takes, but ids and slots, for one launch; false if there is none for these.
bool fused_step(States& states, int64_t rows, int outputs, char* workspace, DecodeStepArgs* args) {
  Model& m = states.model;
  if (!m.decode_step_args(rows, args)) return false;
  args->first_tag = m.take_decode_tags(rows);
  args->states = states.slot(0);
  args->slot_stride = states.slot_stride();
  args->logits = outputs ? reinterpret_cast<float*>(workspace) : nullptr;
  const Staging staging(states.staging.data(), states.staging_rows, m.config.vocab_size);
  args->done = outputs ? nullptr : staging.done;
  return true;
}

// One token of each of `rows` sequences, from pinned memory and back to it: in one kernel where there are few, which is
// told its tokens and slots at each launch, through the composed pass otherwise.
void step(States& states, int64_t rows, int outputs, char* workspace) {
  const Model& m = states.model;
  const cudaStream_t stream = m.engine.stream;
  const Staging staging(states.staging.data(), states.staging_rows, m.config.vocab_size);
  if (DecodeStepArgs fused; fused_step(states, rows, outputs, workspace, &fused)) {
    decode_step(fused, stream);
    hand_out(states, rows, outputs, fused.logits, staging.logits);
    return;
  }
  const Inputs inputs(workspace, rows, rows);
  to_device(inputs.ids, staging.ids, rows * 4, stream);
  to_device(inputs.segments, staging.segments, rows * static_cast<int64_t>(sizeof(Segment)), stream);
  const Segments segments{inputs.segments, rows, rows, 1};
  const Activations act = carve_activations(m, segments, workspace + inputs.bytes);
  const Batch batch{inputs.ids, segments, outputs ? M4J_LOGITS_ALL : M4J_LOGITS_NONE, rows};
  const float* mix_scale = layers(states, batch, act);
  if (outputs == kNoOutputs) return;
  prepare_head(m, batch, mix_scale, act);
  head(m, 0, rows, act);
  hand_out(states, rows, outputs, act.logits, staging.logits);
}

void capture(States& states, int64_t rows, int outputs, char* workspace, States::Graph* to) {
  const cudaStream_t stream = states.model.engine.stream;
  // Once outside of a capture: algorithms are chosen and kernels loaded, which must not happen inside one. Only the
  // filling slot is touched.
  const Staging staging(states.staging.data(), states.staging_rows, states.model.config.vocab_size);
  for (int64_t i = 0; i < rows; ++i) {
    staging.ids[i] = 0;
    staging.segments[i] = {i, 1, 0};
    if (outputs & kTokens) states.choices.items()[i] = {};
  }
  step(states, rows, outputs, workspace);
  states.model.engine.wait();

  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  try {
    step(states, rows, outputs, workspace);
  } catch (...) {
    // Or the next launch would be blamed.
    if (cudaStreamEndCapture(stream, &to->graph) != cudaSuccess) cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream, &to->graph), "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&to->exec, to->graph, 0), "cudaGraphInstantiate");
  std::size_t count = 1;
  check(cudaGraphGetRootNodes(to->graph, &to->first, &count), "cudaGraphGetRootNodes");
}

void decode(States& states, const m4j_advance_args& args, const int64_t* slots) {
  const Model& m = states.model;
  Engine& engine = states.model.engine;
  const int64_t rows = bucket(args.n_seqs), V = m.config.vocab_size;
  const int outputs = outputs_of(args);
  if (rows > states.staging_rows) {
    states.forget_graphs();  // they know the old addresses
    states.staging = PinnedBuffer();
    states.staging_rows = 0;
    states.staging = PinnedBuffer(Staging(nullptr, rows, V).bytes);
    states.staging_rows = rows;
  }
  char* workspace = engine.workspace(step_bytes(m, rows));
  if (outputs & kTokens) states.choices.reserve(kMaxGraphRows);
  const int64_t choices_moves = outputs & kTokens ? states.choices.moves : 0;
  States::Graph& graph = states.graphs[{rows, outputs}];
  if (graph.workspace_moves != engine.workspace_moves || graph.choices_moves != choices_moves) {
    states.forget(graph);
    capture(states, rows, outputs, workspace, &graph);
    graph.workspace_moves = engine.workspace_moves;
    graph.choices_moves = choices_moves;
  }
  const Staging staging(states.staging.data(), states.staging_rows, V);
  DecodeStepArgs fused;
  const bool is_fused = fused_step(states, rows, outputs, workspace, &fused);
  for (int64_t i = 0; i < rows; ++i) {
    const bool filling = i >= args.n_seqs;
    const int32_t id = filling ? 0 : args.tokens[i];
    const int64_t slot = filling ? 0 : slots[i];
    if (is_fused) {
      fused.ids[i] = id;
      fused.slots[i] = slot;
    } else {
      staging.ids[i] = id;
      staging.segments[i] = {i, 1, slot};
    }
  }
  if (is_fused) decode_step_update(graph.exec, graph.first, fused);
  *staging.done = 0;
  if (outputs & kTokens) states.choices.fill(args, rows, V);
  check(cudaGraphLaunch(graph.exec, engine.stream), "cudaGraphLaunch");
  is_fused && outputs == kNoOutputs ? engine.wait_for(staging.done) : engine.wait();
  if (outputs & kTokens) states.choices.hand_over(args);
  if (outputs & kLogits) std::memcpy(args.logits, staging.logits, static_cast<std::size_t>(args.n_seqs * V) * 4);
}

int64_t block_tokens(const Model& m) {
  int64_t tokens = kMostBlockTokens;
  while (tokens > kFewestBlockTokens &&
         activation_bytes(m, {nullptr, 1, tokens, tokens}) > m.engine.memory_bytes / kActivationShare) {
    tokens /= 2;
  }
  return tokens;
}

// Blocks of up to `capacity` tokens, one after the other.
void prefill_blocks(States& states, const m4j_advance_args& args, const int64_t* slots, int64_t capacity,
                    const Inputs& inputs, const Activations& act) {
  const Model& m = states.model;
  Engine& engine = states.model.engine;
  const int64_t V = m.config.vocab_size;
  const int outputs = outputs_of(args);
  const int32_t logits_mode = outputs == kTokens ? M4J_LOGITS_LAST : args.logits_mode;
  std::vector<Segment> pieces;
  pieces.reserve(static_cast<std::size_t>(std::min(args.n_seqs, capacity)));
  const auto add = [&](int64_t row, int64_t tokens, int64_t seq) { pieces.push_back({row, tokens, slots[seq]}); };
  BlockPlan plan(args.offsets, args.n_seqs, capacity, kCutTokens);
  for (BlockPlan::Block block; pieces.clear(), plan.next(&block, add);) {
    engine.transfers.upload(inputs.ids, args.tokens + block.first, block.tokens * 4, engine.stream);
    engine.transfers.upload(inputs.segments, pieces.data(), block.pieces * static_cast<int64_t>(sizeof(Segment)),
                            engine.stream);
    const Batch batch{inputs.ids, {inputs.segments, block.pieces, block.tokens, block.longest}, logits_mode, block.n_last};
    const float* mix_scale = layers(states, batch, act);
    const int64_t rows = logit_rows(batch);
    if (rows == 0) continue;
    prepare_head(m, batch, mix_scale, act);
    const bool all = logits_mode == M4J_LOGITS_ALL;
    const int64_t first_row = all ? block.first : block.first_seq;
    int64_t ended = 0;  // pieces whose token has been chosen
    for (int64_t r = 0; r < rows; r += act.logit_rows) {
      const int64_t count = std::min(act.logit_rows, rows - r);
      head(m, r, count, act);
      if (outputs & kTokens) {
        const int64_t first = ended, seq = block.first_seq;
        for (; ended < block.n_last; ++ended) {
          const Segment& piece = pieces[static_cast<std::size_t>(ended)];
          const int64_t row = all ? piece.row + piece.tokens - 1 : ended;
          if (row >= r + count) break;
          states.choices.items()[seq + ended].row = row - r;
        }
        if (ended > first) {
          sample({act.logits, V, V, states.choices.items() + seq + first, ended - first,
                  states.choices.results() + seq + first},
                 engine.stream);
        }
      }
      if (outputs & kLogits) {
        engine.transfers.download(args.logits + (first_row + r) * V, act.logits, count * V * 4, engine.stream);
      }
    }
  }
}

void prefill(States& states, const m4j_advance_args& args, const int64_t* slots) {
  const Model& m = states.model;
  Engine& engine = states.model.engine;
  const int64_t capacity = std::min(args.offsets[args.n_seqs], block_tokens(m));
  const int64_t max_segments = std::min(args.n_seqs, capacity);
  const Segments bound{nullptr, max_segments, capacity, capacity};
  const int64_t input_bytes = Inputs(nullptr, capacity, max_segments).bytes;
  char* workspace = engine.workspace(input_bytes + activation_bytes(m, bound));
  const Inputs inputs(workspace, capacity, max_segments);
  const Activations act = carve_activations(m, bound, workspace + input_bytes);
  const bool chooses = outputs_of(args) & kTokens;
  if (chooses) {
    states.choices.reserve(args.n_seqs);
    states.choices.fill(args, args.n_seqs, m.config.vocab_size);
  }
  // Whatever it was, windows and states may have been replaced by then, or still be.
  const auto broken_off = [&](const char* why) {
    cudaStreamSynchronize(engine.stream);
    fail(M4J_ERR_INTERNAL, "broken off, the sequences may have changed: %s", why);
  };
  try {
    prefill_blocks(states, args, slots, capacity, inputs, act);
    engine.wait();
  } catch (const Failure& e) {
    broken_off(e.message);
  } catch (const std::exception& e) {
    broken_off(e.what());
  }
  if (chooses) states.choices.hand_over(args);
}

}  // namespace

void advance(States& states, const m4j_advance_args& args, const int64_t* slots) {
  if (args.samplings != nullptr) check_sample_vocab(states.model.config.vocab_size);
  if (args.offsets[args.n_seqs] == args.n_seqs && args.n_seqs <= kMaxGraphRows) {
    decode(states, args, slots);
  } else {
    prefill(states, args, slots);
  }
}

}  // namespace m4j::cuda
