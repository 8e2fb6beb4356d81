#include "runtime/cpu_count.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "runtime/team.h"

namespace m4j {
namespace {

constexpr int kMaxDefaultThreads = 1024;  // what m4j_engine_create accepts

int quota_in_processors(double quota, double period) {
  if (!(quota > 0) || !(period > 0)) return 0;
  return static_cast<int>(std::clamp((quota + period - 1) / period, 1.0, double{kMaxDefaultThreads}));
}

// "max 100000" or "150000 100000"
int read_cpu_max(const std::string& folder) {
  std::ifstream in(folder + "/cpu.max");
  double quota = 0, period = 0;
  return in >> quota >> period ? quota_in_processors(quota, period) : 0;
}

// A quota of -1 means none.
int read_cfs_quota(const std::string& folder) {
  std::ifstream quota_in(folder + "/cpu.cfs_quota_us"), period_in(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  return quota_in >> quota && period_in >> period ? quota_in_processors(quota, period) : 0;
}

int smaller_limit(int a, int b) { return a == 0 ? b : b == 0 ? a : std::min(a, b); }

// The smallest limit of `path` and its parents below `mount`. Inside a container the path may be the host's and not
// exist under this mount; the walk then ends at the mount itself, which is the container's own group.
int limit_along(const std::string& mount, std::string path, int (*read)(const std::string&)) {
  int limit = 0;
  for (;;) {
    limit = smaller_limit(limit, read(mount + path));
    if (path.empty()) return limit;
    const auto slash = path.rfind('/');
    path.resize(slash == std::string::npos ? 0 : slash);
  }
}

bool lists_cpu(const std::string& controllers) {
  return ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

}  // namespace

int cgroup_cpu_limit(const std::string& root) {
  std::ifstream in(root + "/proc/self/cgroup");
  const std::string mounts = root + "/sys/fs/cgroup";
  int limit = 0;
  for (std::string line; std::getline(in, line);) {  // hierarchy-id:controllers:path
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      limit = smaller_limit(limit, limit_along(mounts, path, read_cpu_max));
      limit = smaller_limit(limit, limit_along(mounts + "/unified", path, read_cpu_max));
    } else if (lists_cpu(controllers)) {
      limit = smaller_limit(limit, limit_along(mounts + "/" + controllers, path, read_cfs_quota));
      limit = smaller_limit(limit, limit_along(mounts + "/cpu", path, read_cfs_quota));
    }
  }
  return limit;
}

int default_thread_count() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
  // The plain cpu_set_t holds 1024 processors; on a larger machine the call fails and the count above stays.
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  count = smaller_limit(count, cgroup_cpu_limit(""));
  return std::clamp(count, 1, kMaxDefaultThreads);
}

}  // namespace m4j
