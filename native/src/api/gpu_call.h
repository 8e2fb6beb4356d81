// Operations on an engine that computes on a GPU.
#pragma once

#include <utility>

#include "api/validate.h"
#include "runtime/engine.h"

namespace m4j {

// What activations may be; all of one call have the same type.
inline Types activation_types(const Engine& engine) { return engine.gpu == nullptr ? Types::kF32 : Types::kAnyFloat; }

// Calls a function of cuda::Api that works on an engine.
template <typename Function, typename... Args>
void call_gpu(Engine& engine, Function function, Args&&... args) {
  const Engine::Turn turn(engine);
  CudaDevice::call(function, engine.gpu->engine, std::forward<Args>(args)...);
}

}  // namespace m4j
