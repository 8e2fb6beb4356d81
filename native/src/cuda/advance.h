#pragma once

#include "cuda/states.h"

namespace m4j::cuda {

// As m4j_advance on slots whose numbers are given; returns when logits and tokens are in args.
void advance(States& states, const m4j_advance_args& args, const int64_t* slots);

}  // namespace m4j::cuda
