#pragma once

#include "mamba4j.h"
#include "state/states.h"

namespace m4j {

// Everything about the arguments of m4j_advance but the slots, which a lease checks.
void check_advance(const States& states, const m4j_advance_args& args);

}  // namespace m4j
