#include "api/advance.h"

#include <cstddef>

#include "api/error.h"
#include "api/handles.h"
#include "api/sampling.h"
#include "model/advance.h"

namespace m4j {
namespace {

void check_offsets(const m4j_advance_args& a) {
  if (a.offsets[0] != 0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.offsets[0]: is %lld, expected 0", static_cast<long long>(a.offsets[0]));
  }
  for (int64_t i = 0; i < a.n_seqs; ++i) {
    if (a.offsets[i + 1] <= a.offsets[i]) {
      fail(M4J_ERR_INVALID_ARGUMENT, "args.offsets[%lld]: is %lld, expected more than offsets[%lld] = %lld",
           static_cast<long long>(i + 1), static_cast<long long>(a.offsets[i + 1]), static_cast<long long>(i),
           static_cast<long long>(a.offsets[i]));
    }
  }
}

void check_tokens(const m4j_advance_args& a, int64_t vocab_size) {
  for (int64_t i = 0; i < a.offsets[a.n_seqs]; ++i) {
    if (a.tokens[i] < 0 || a.tokens[i] >= vocab_size) {
      fail(M4J_ERR_INVALID_ARGUMENT, "args.tokens[%lld]: is %d, expected 0 ... %lld (vocab_size %lld)",
           static_cast<long long>(i), a.tokens[i], static_cast<long long>(vocab_size - 1),
           static_cast<long long>(vocab_size));
    }
  }
}

void check_logits(const m4j_advance_args& a, int64_t vocab_size) {
  if (a.logits_mode < M4J_LOGITS_NONE || a.logits_mode > M4J_LOGITS_ALL) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.logits_mode: is %d, expected 0 (none), 1 (last) or 2 (all)", a.logits_mode);
  }
  if (a.logits_mode == M4J_LOGITS_NONE) return;
  require(a.logits, "args.logits");
  if (reinterpret_cast<uintptr_t>(a.logits) % sizeof(float) != 0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.logits: address %p is not aligned to 4 bytes", static_cast<void*>(a.logits));
  }
  const int64_t rows = a.logits_mode == M4J_LOGITS_ALL ? a.offsets[a.n_seqs] : a.n_seqs;
  int64_t needed;
  if (__builtin_mul_overflow(rows, vocab_size, &needed) || a.logits_capacity < needed) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.logits_capacity: is %lld floats, expected at least %lld rows of %lld",
         static_cast<long long>(a.logits_capacity), static_cast<long long>(rows), static_cast<long long>(vocab_size));
  }
}

void check_samplings(const m4j_advance_args& a, int64_t vocab_size) {
  if (a.samplings == nullptr) return;
  require(a.sampled, "args.sampled");
  for (int64_t i = 0; i < a.n_seqs; ++i) {
    if (a.samplings[i] != nullptr) check_sampling(*a.samplings[i], i, vocab_size);
  }
}

void check(const m4j_advance_args& a, int64_t vocab_size) {
  require_reserved_zero(a.reserved, "args");
  if (a.n_seqs < 1 || a.n_seqs == INT64_MAX) {
    fail(M4J_ERR_INVALID_ARGUMENT, "args.n_seqs: is %lld, expected at least 1", static_cast<long long>(a.n_seqs));
  }
  require(a.slots, "args.slots");
  require(a.tokens, "args.tokens");
  require(a.offsets, "args.offsets");
  check_offsets(a);
  check_logits(a, vocab_size);
  check_samplings(a, vocab_size);
  check_tokens(a, vocab_size);
}

}  // namespace

m4j_advance_args checked_advance(const States& states, const m4j_advance_args* args) {
  const m4j_advance_args a = read_args(args, offsetof(m4j_advance_args, samplings), "args");
  check(a, states.model().config.vocab_size);
  return a;
}

}  // namespace m4j

m4j_status m4j_advance(m4j_states* states, const m4j_advance_args* args, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    States& slots = *require(states, "states")->impl;
    advance(slots, checked_advance(slots, args));
  });
}
