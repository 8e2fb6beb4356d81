#include "report.h"

#include <mamba4j.h>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>

#include "ops/ops.h"

namespace m4j::bench {
namespace {

using Json = nlohmann::ordered_json;

std::string processor() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof(text), "%Y-%m-%d", std::gmtime(&now));
  return text;
}

Json to_json(const Spread& s) { return {{"median", s.median}, {"min", s.min}, {"max", s.max}, {"samples", s.samples}}; }

}  // namespace

Spread rate_of(const Spread& t, double work) { return {work / t.median, work / t.max, work / t.min, t.samples}; }

Report::Report(const Plan& plan) {
  root_["date"] = today();
  root_["version"] = m4j_version();
  root_["processor"] = processor();
  root_["simd_target"] = find_ops(plan.simd())->name;
  root_["repeat"] = plan.repeat;
  root_["runs"] = Json::array();
  std::printf("mamba4j %s, %s, %s, %s\n", m4j_version(), today().c_str(), processor().c_str(),
              find_ops(plan.simd())->name);
}

void Report::start(int threads, const Ceilings& c) {
  root_["runs"].push_back({{"threads", threads},
                           {"read_bandwidth_gb_s", to_json(c.read_gb_s)},
                           {"sgemm_gflops", to_json(c.sgemm_gflops)},
                           {"sgemm_library", c.sgemm_how},
                           {"figures", Json::array()}});
  run_ = &root_["runs"].back();
  std::printf("\n%d thread%s: reads %.1f GB/s (%.1f-%.1f), sgemm %.0f GFLOP/s (%.0f-%.0f, %s)\n", threads,
              threads == 1 ? "" : "s", c.read_gb_s.median, c.read_gb_s.min, c.read_gb_s.max, c.sgemm_gflops.median,
              c.sgemm_gflops.min, c.sgemm_gflops.max, c.sgemm_how.c_str());
  std::printf("%-8s %-14s %-34s %12s %-9s %-19s %s\n", "group", "what", "detail", "median", "unit", "min-max", "of ceiling");
}

void Report::add(const Figure& f) {
  Json j = {{"group", f.group}, {"name", f.name}, {"detail", f.detail}, {"x", f.x}, {"unit", f.unit}, {"rate", to_json(f.rate)}};
  std::string fraction = "-";
  if (f.ceiling > 0) {
    j["ceiling"] = f.ceiling;
    j["fraction"] = f.rate.median / f.ceiling;
    fraction = std::to_string(static_cast<int>(std::lround(100 * f.rate.median / f.ceiling))) + " %";
  }
  (*run_)["figures"].push_back(j);
  char range[40];
  std::snprintf(range, sizeof(range), "%.5g-%.5g", f.rate.min, f.rate.max);
  std::printf("%-8s %-14s %-34s %12.5g %-9s %-19s %s\n", f.group.c_str(), f.name.c_str(), f.detail.c_str(), f.rate.median,
              f.unit.c_str(), range, fraction.c_str());
  std::fflush(stdout);
}

}  // namespace m4j::bench
