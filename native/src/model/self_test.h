// Tiny models through the forward pass and the decode step of a GPU, against the scalar reference.
#pragma once

#include <memory>

#include "runtime/engine.h"

namespace m4j {

// Throws Failure (M4J_ERR_UNSUPPORTED) if the engine's GPU computes something else. Once a process and device.
void self_test_models(const std::shared_ptr<Engine>& engine, int32_t ordinal);

}  // namespace m4j
