// The SIMD backends. Each op is compiled once for every Highway target, in that target's namespace.
#pragma once

#include "ops/ops.h"

namespace m4j {

inline constexpr int kMaxCpuOps = 4;

// Writes the backends that this processor runs, best first, and returns how many. At most kMaxCpuOps.
int cpu_ops(const Ops** list);

}  // namespace m4j
