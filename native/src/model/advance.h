// The one forward primitive: a ragged batch of sequences moves on.
#pragma once

#include "mamba4j.h"
#include "state/states.h"

namespace m4j {

// Everything in args but the slots is valid. Either all sequences advance, or it throws and none has.
void advance(States& states, const m4j_advance_args& args);
// The same on slots that have been leased: those of args.slots.
void advance(States::Lease& lease, const m4j_advance_args& args);

}  // namespace m4j
