#include "api/sampling.h"

#include <cfloat>

#include "api/error.h"
#include "api/gpu_call.h"
#include "api/handles.h"
#include "api/validate.h"
#include "ops/sampling.h"

namespace m4j {
namespace {

// A number of samplings[i] and what it was expected to be.
void require_number(bool holds, int64_t i, const char* field, double found, const char* expected) {
  if (holds) return;
  fail(M4J_ERR_INVALID_ARGUMENT, "args.samplings[%lld].%s: is %g, expected %s", static_cast<long long>(i), field, found,
       expected);
}

void require_count(int64_t value, int64_t i, const char* field) {
  if (value >= 0) return;
  fail(M4J_ERR_INVALID_ARGUMENT, "args.samplings[%lld].%s: is %lld, expected 0 or more", static_cast<long long>(i), field,
       static_cast<long long>(value));
}

void hand_over(const m4j_sample_args& a, const Vector<SampleResult>& results) {
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i].token < 0) {
      fail(M4J_ERR_INVALID_ARGUMENT, "args.logits[%zu, %d]: is %g, expected finite numbers", i, -1 - results[i].token,
           static_cast<double>(results[i].log_prob));
    }
  }
  for (std::size_t i = 0; i < results.size(); ++i) {
    a.tokens[i] = results[i].token;
    if (a.log_probs != nullptr) a.log_probs[i] = results[i].log_prob;
  }
}

void sample(Engine& engine, const m4j_sample_args& a) {
  const Tensor logits{"args.logits", a.logits};
  check_tensor(logits, {{"rows", kAny}, {"V", kAny}});
  check_rows_contiguous(logits);
  require(a.samplings, "args.samplings");
  require(a.tokens, "args.tokens");
  const int64_t rows = a.logits.shape[0], V = a.logits.shape[1];
  Vector<SampleItem> items;
  Vector<SampleResult> results(static_cast<std::size_t>(rows));
  items.reserve(static_cast<std::size_t>(rows));
  for (int64_t i = 0; i < rows; ++i) {
    if (a.samplings[i] == nullptr) {
      fail(M4J_ERR_INVALID_ARGUMENT, "args.samplings[%lld]: is NULL", static_cast<long long>(i));
    }
    check_sampling(*a.samplings[i], i, V);
    items.push_back(sample_item(*a.samplings[i], i, V, a.log_probs != nullptr));
  }
  if (engine.gpu != nullptr) {
    call_gpu(engine, engine.gpu->api.sample, a.logits, items.data(), results.data());
    return hand_over(a, results);
  }
  const SampleArgs args = {.logits = static_cast<const float*>(a.logits.data),
                           .ld_logits = a.logits.strides[0],
                           .items = items.data(),
                           .count = rows,
                           .results = results.data()};
  {
    Engine::Turn turn(engine);
    turn.reserve(0, engine.ops.sample_scratch(V));
    turn.run([&](const Share& share) { engine.ops.sample(args, share); });
  }
  hand_over(a, results);
}

}  // namespace

void check_sampling(const m4j_sampling& s, int64_t i, int64_t vocab_size) {
  if (s.struct_size < sizeof s) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.samplings[%lld].struct_size: is %llu, expected at least %zu",
         static_cast<long long>(i), static_cast<unsigned long long>(s.struct_size), sizeof s);
  }
  if (vocab_size > kMaxSampleVocab) {
    fail(M4J_ERR_UNSUPPORTED, "sampling from %lld logits, expected at most %lld", static_cast<long long>(vocab_size),
         static_cast<long long>(kMaxSampleVocab));
  }
  require_count(s.candidates, i, "candidates");
  require_count(s.top_k, i, "top_k");
  require_count(s.n_recent, i, "n_recent");
  require_number(s.temperature >= 0 && s.temperature <= FLT_MAX, i, "temperature", s.temperature, "a number >= 0");
  require_number(s.top_p > 0 && s.top_p <= 1, i, "top_p", s.top_p, "above 0 and at most 1");
  require_number(s.min_p >= 0 && s.min_p <= 1, i, "min_p", s.min_p, "0 to 1");
  require_number(s.repetition_penalty > 0 && s.repetition_penalty <= FLT_MAX, i, "repetition_penalty",
                 s.repetition_penalty, "a number > 0");
  if (s.n_recent > 0 && s.recent == nullptr) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.samplings[%lld].recent: is NULL, expected %lld ids", static_cast<long long>(i),
         static_cast<long long>(s.n_recent));
  }
}

}  // namespace m4j

m4j_status m4j_sample(m4j_engine* engine, const m4j_sample_args* args, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] { sample(*require(engine, "engine")->impl, require_args(args, "args")); });
}
