// Whole models: prefill over lengths, decode over batches, time per token over contexts.
#pragma once

#include "ceilings.h"
#include "plan.h"
#include "report.h"

namespace m4j::bench {

// Compares a few tokens of every planned model with the reference backend, and a split prompt with the whole one.
// Prints each result; false if one is off.
bool check_models(const Plan& plan);

void time_models(const Plan& plan, int threads, const Ceilings& ceilings, Report& report);

}  // namespace m4j::bench
