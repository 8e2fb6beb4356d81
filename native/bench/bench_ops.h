// Single ops on the shapes that the 130m and 2.8b models give them.
#pragma once

#include "ceilings.h"
#include "plan.h"
#include "report.h"

namespace m4j::bench {

// Compares every op with the reference backend on random inputs; false if one is off.
bool check_ops(const Plan& plan);

void time_ops(const Plan& plan, int threads, const Ceilings& ceilings, Report& report);

}  // namespace m4j::bench
