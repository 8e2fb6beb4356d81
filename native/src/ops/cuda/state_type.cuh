// SSM states as a pool keeps them: float32 or bfloat16. Arithmetic is float32; a state is rounded when it is stored.
#pragma once

#include <type_traits>

#include "ops/cuda/launch.cuh"

namespace m4j::cuda {

// v in the type of a pool. What bfloat16 cuts off decides how likely v is rounded away from zero: a state that decays
// by less than half a unit in its last place would otherwise never decay, nor grow by small additions. Chance is a hash of
// v, so that the same v is rounded alike wherever and whenever it is computed.
template <typename S>
__device__ S to_state(float v) {
  if constexpr (std::is_same_v<S, float>) {
    return v;
  } else {
    static_assert(std::is_same_v<S, __nv_bfloat16>);
    const unsigned bits = __float_as_uint(v), chance = bits * 0x9e3779b1u >> 16;
    // The sum could make a zero of a number that is none.
    const unsigned rounded = v == v ? bits + chance : 0x7fffffffu;
    return __ushort_as_bfloat16(static_cast<unsigned short>(rounded >> 16));
  }
}

// body(S()) with the type of a pool's states.
template <typename Body>
void with_state_type(DType type, Body&& body) {
  type == DType::kBF16 ? body(__nv_bfloat16()) : body(float());
}

// The same inside a kernel: body(states as a pointer to its elements).
template <typename Body>
__device__ void with_states(void* states, DType type, Body&& body) {
  type == DType::kBF16 ? body(static_cast<__nv_bfloat16*>(states)) : body(static_cast<float*>(states));
}

}  // namespace m4j::cuda
