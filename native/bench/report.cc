#include "report.h"

#include <mamba4j.h>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <map>
#include <sstream>

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

// A line chart of rate over x, both axes logarithmic, one line a series; plain SVG, no script.
std::string chart(const std::string& title, const std::string& unit,
                  const std::map<std::string, std::map<double, double>>& series) {
  constexpr double kWidth = 640, kHeight = 320, kLeft = 70, kRight = 210, kTop = 30, kBottom = 40;
  static const char* kColours[] = {"#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#e0903c", "#444444", "#17a2b8", "#b5a642"};
  double x0 = 1e300, x1 = 0, y0 = 1e300, y1 = 0;
  for (const auto& [name, points] : series)
    for (const auto& [x, y] : points) {
      x0 = std::min(x0, x), x1 = std::max(x1, x), y0 = std::min(y0, y), y1 = std::max(y1, y);
    }
  y0 *= 0.8, y1 *= 1.25;
  if (x0 == x1) x0 *= 0.5, x1 *= 2;
  const auto px = [&](double x) {
    return kLeft + (kWidth - kLeft - kRight) * std::log(x / x0) / std::log(x1 / x0);
  };
  const auto py = [&](double y) { return kTop + (kHeight - kTop - kBottom) * (1 - std::log(y / y0) / std::log(y1 / y0)); };
  std::ostringstream out;
  out << "<svg viewBox='0 0 " << kWidth << ' ' << kHeight << "' width='" << kWidth << "' font-family='sans-serif' font-size='11'>"
      << "<text x='" << kLeft << "' y='18' font-size='14'>" << title << " (" << unit << ")</text>"
      << "<path d='M" << kLeft << ' ' << kTop << 'V' << kHeight - kBottom << 'H' << kWidth - kRight << "' stroke='#888' fill='none'/>";
  for (double decade = std::pow(10, std::floor(std::log10(y0))); decade <= y1; decade *= 10)
    for (double tick : {decade, 2 * decade, 5 * decade})
      if (tick >= y0 && tick <= y1)
        out << "<path d='M" << kLeft << ' ' << py(tick) << 'H' << kWidth - kRight << "' stroke='#eee'/><text text-anchor='end' x='"
            << kLeft - 6 << "' y='" << py(tick) + 4 << "'>" << tick << "</text>";
  std::map<double, bool> ticks;
  for (const auto& [name, points] : series)
    for (const auto& [x, y] : points) ticks[x] = true;
  for (const auto& [x, unused] : ticks)
    out << "<text text-anchor='middle' x='" << px(x) << "' y='" << kHeight - kBottom + 16 << "'>" << x << "</text>";
  int i = 0;
  for (const auto& [name, points] : series) {
    const char* colour = kColours[i % 8];
    out << "<polyline fill='none' stroke-width='2' stroke='" << colour << "' points='";
    for (const auto& [x, y] : points) out << px(x) << ',' << py(y) << ' ';
    out << "'/>";
    for (const auto& [x, y] : points) out << "<circle r='3' fill='" << colour << "' cx='" << px(x) << "' cy='" << py(y) << "'/>";
    out << "<text fill='" << colour << "' x='" << kWidth - kRight + 10 << "' y='" << kTop + 14 * i + 10 << "'>" << name << "</text>";
    ++i;
  }
  out << "</svg>";
  return out.str();
}

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

std::string Report::json() const { return root_.dump(1) + "\n"; }

std::string Report::html() const {
  std::ostringstream out;
  out << "<!doctype html><meta charset='utf-8'><title>mamba4j benchmark</title><body style='font-family:sans-serif;margin:2em'>"
      << "<h1>mamba4j benchmark</h1><p>" << root_["date"].get<std::string>() << ", " << root_["processor"].get<std::string>()
      << ", " << root_["simd_target"].get<std::string>() << "</p>";
  static const std::map<std::string, std::string> kTitles = {
      {"prefill", "Prefill against prompt length"},
      {"decode", "Decode against batch size"},
      {"context", "Decode against tokens of context"}};
  for (const Json& run : root_["runs"]) {
    out << "<h2>" << run["threads"] << " threads: reads " << run["read_bandwidth_gb_s"]["median"].get<double>()
        << " GB/s, sgemm " << run["sgemm_gflops"]["median"].get<double>() << " GFLOP/s</h2>";
    for (const auto& [group, title] : kTitles) {
      std::map<std::string, std::map<double, double>> series;
      for (const Json& f : run["figures"])
        if (f["group"] == group)
          series[f["name"].get<std::string>() + " " + f["detail"].get<std::string>().substr(0, f["detail"].get<std::string>().find(' '))]
                [f["x"]] = f["rate"]["median"];
      if (!series.empty()) out << chart(title, "tok/s", series);
    }
    out << "<table border='1' cellspacing='0' cellpadding='4'><tr><th>group<th>what<th>detail<th>median<th>unit<th>min<th>max<th>of ceiling</tr>";
    for (const Json& f : run["figures"]) {
      out << "<tr><td>" << f["group"].get<std::string>() << "<td>" << f["name"].get<std::string>() << "<td>"
          << f["detail"].get<std::string>() << "<td>" << f["rate"]["median"] << "<td>" << f["unit"].get<std::string>() << "<td>"
          << f["rate"]["min"] << "<td>" << f["rate"]["max"] << "<td>";
      if (f.contains("fraction")) out << std::lround(100 * f["fraction"].get<double>()) << " %";
      out << "</tr>";
    }
    out << "</table>";
  }
  return out.str();
}

}  // namespace m4j::bench
