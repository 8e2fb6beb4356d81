// The SIMD backends. Each op is compiled once for every Highway target, in that target's namespace.
#pragma once

#include "ops/ops.h"

namespace m4j {

inline constexpr int kMaxCpuOps = 8;

// Whether the build holds the ops for x86-64's matrix units, which only Linux is asked for.
#if defined(__x86_64__) && defined(__linux__)
#define M4J_AMX 1
#else
#define M4J_AMX 0
#endif

// Writes the backends that this processor runs, best first, and returns how many. At most kMaxCpuOps.
int cpu_ops(const Ops** list);

}  // namespace m4j
