// How many processors the container grants.
#pragma once

#include <string>

namespace m4j {

// Processors that the CPU quota of this process's cgroup and of its parents allows, rounded up; 0 if there is none.
// Reads <root>/proc/self/cgroup and <root>/sys/fs/cgroup (version 2: cpu.max, version 1: cpu.cfs_*); root is "" but
// in tests.
int cgroup_cpu_limit(const std::string& root);

}  // namespace m4j
