// Small cases of every kernel family against the scalar reference: a card, driver or build on which one of them comes
// out wrong is refused before it computes anything for a user.
#pragma once

#include "cuda/engine.h"
#include "ops/ops.h"

namespace m4j::cuda {

// Throws Failure (M4J_ERR_UNSUPPORTED) that names the kernel.
void expect_known_answers(Engine& engine, const m4j::Ops& reference);

// The same once a process and device; returns the milliseconds it took, 0 if it had passed before.
float self_test(Engine& engine, const m4j::Ops& reference);

}  // namespace m4j::cuda
