#include "page.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>
#include <vector>

namespace m4j::bench {
namespace {

using Json = nlohmann::ordered_json;
using Series = std::map<std::string, std::map<double, double>>;

std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '<') out += "&lt;";
    else if (c == '&') out += "&amp;";
    else out += c;
  }
  return out;
}

// Text as it is, numbers with four digits.
std::string cell(const Json& value) {
  if (value.is_string()) return escaped(value.get<std::string>());
  if (value.is_number_integer()) return value.dump();
  std::ostringstream out;
  out.precision(4);
  if (value.is_number()) out << value.get<double>();
  return out.str();
}

void table(std::ostream& out, const std::vector<std::string>& columns, const std::vector<std::vector<std::string>>& rows) {
  out << "<table border='1' cellspacing='0' cellpadding='4'><tr>";
  for (const std::string& column : columns) out << "<th>" << column;
  for (const auto& row : rows) {
    out << "<tr>";
    for (const std::string& text : row) out << "<td>" << text;
  }
  out << "</table>";
}

// A line chart of rate over x, both axes logarithmic, one line a series; plain SVG, no script.
std::string chart(const std::string& title, const std::string& unit,
                  const Series& series) {
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

// What m4j-bench measured.
void native_section(std::ostream& out, const Json& native) {
  struct Chart {
    const char *group, *title, *unit;
    bool inverse;  // time instead of rate
  };
  static const Chart kCharts[] = {{"prefill", "Prefill against prompt length", "tok/s", false},
                                  {"decode", "Decode against batch size", "tok/s", false},
                                  {"context", "Time per token against tokens of context", "\u00b5s", true}};
  out << "<p>" << cell(native["date"]) << ", " << cell(native["processor"]) << ", " << cell(native["simd_target"]) << "</p>";
  for (const Json& run : native["runs"]) {
    out << "<h3>" << run["threads"] << " threads: reads " << cell(run["read_bandwidth_gb_s"]["median"]) << " GB/s, sgemm "
        << cell(run["sgemm_gflops"]["median"]) << " GFLOP/s</h3>";
    for (const Chart& c : kCharts) {
      Series series;
      for (const Json& f : run["figures"]) {
        if (f["group"] != c.group) continue;
        const std::string detail = f["detail"].get<std::string>();
        const double rate = f["rate"]["median"].get<double>();
        series[f["name"].get<std::string>() + " " + detail.substr(0, detail.find(' '))][f["x"].get<double>()] =
            c.inverse ? 1e6 / rate : rate;
      }
      if (!series.empty()) out << chart(c.title, c.unit, series);
    }
    std::vector<std::vector<std::string>> rows;
    for (const Json& f : run["figures"]) {
      const std::string fraction =
          f.contains("fraction") ? std::to_string(std::lround(100 * f["fraction"].get<double>())) + " %" : "";
      rows.push_back({cell(f["group"]), cell(f["name"]), cell(f["detail"]), cell(f["rate"]["median"]), cell(f["unit"]),
                      cell(f["rate"]["min"]), cell(f["rate"]["max"]), fraction});
    }
    table(out, {"group", "what", "detail", "median", "unit", "min", "max", "of ceiling"}, rows);
  }
}

// What org.mamba4j.bench.JavaBenchmarks wrote: flat rows, the names of their fields as columns.
void java_section(std::ostream& out, const Json& java) {
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
  for (const Json& figure : java) {
    std::vector<std::string> row;
    columns.clear();
    for (const auto& [name, value] : figure.items()) {
      columns.push_back(name);
      row.push_back(cell(value));
    }
    rows.push_back(row);
  }
  table(out, columns, rows);
}

// What org.mamba4j.bench.peers.Peers wrote.
void peers_section(std::ostream& out, const Json& peers) {
  out << "<p>" << cell(peers["date"]) << ", " << cell(peers["processor"]) << ", " << peers["threads"] << " threads</p>";
  std::vector<std::vector<std::string>> rows;
  for (const Json& f : peers["figures"]) {
    std::string ratio;
    if (f.contains("mamba4j_faster_by")) {
      const Json& r = f["mamba4j_faster_by"];
      ratio = cell(r["median"]) + "x (" + cell(r["min"]) + "-" + cell(r["max"]) + ")";
    }
    rows.push_back({cell(f["model"]), cell(f["weights"]), cell(f["work"]), cell(f["library"]), cell(f["figure"]["median"]),
                    cell(f["unit"]), cell(f["figure"]["min"]), cell(f["figure"]["max"]), ratio});
  }
  table(out, {"model", "weights", "work", "library", "median", "unit", "min", "max", "mamba4j is faster by"}, rows);
  out << "<ul>";
  for (const Json& note : peers["notes"]) out << "<li>" << cell(note);
  out << "</ul>";
}

}  // namespace

std::string page(const Json& report) {
  struct Section {
    const char *name, *title;
    void (*write)(std::ostream&, const Json&);
  };
  static const Section kSections[] = {{"native", "Native library", native_section},
                                      {"long", "Long prompts and contexts", native_section},
                                      {"java", "One decode step through Java", java_section},
                                      {"peers", "Beside other libraries", peers_section}};
  std::ostringstream out;
  out << "<!doctype html><meta charset='utf-8'><title>mamba4j benchmark</title><body style='font-family:sans-serif;margin:2em'>"
      << "<h1>mamba4j benchmark</h1>";
  for (const Section& section : kSections) {
    if (!report.contains(section.name)) continue;
    out << "<h2>" << section.title << "</h2>";
    section.write(out, report[section.name]);
  }
  return out.str();
}

}  // namespace m4j::bench
