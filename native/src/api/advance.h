#pragma once

#include "mamba4j.h"
#include "state/states.h"

namespace m4j {

// The arguments of m4j_advance, of this or an older header, once all about them has been checked but the slots, which a
// lease does.
m4j_advance_args checked_advance(const States& states, const m4j_advance_args* args);

}  // namespace m4j
