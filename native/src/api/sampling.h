// Checks of sampling parameters from outside.
#pragma once

#include <cstdint>

#include "mamba4j.h"

namespace m4j {

// How rows of `vocab_size` logits are sampled; the message names samplings[i].
void check_sampling(const m4j_sampling& sampling, int64_t i, int64_t vocab_size);

}  // namespace m4j
