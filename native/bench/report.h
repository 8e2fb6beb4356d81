// Collects figures and prints them as they come.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "ceilings.h"
#include "measure.h"
#include "plan.h"

namespace m4j::bench {

// One measured quantity. `rate` is in `unit` (higher is better); `ceiling` in the same unit, 0 if none applies.
struct Figure {
  std::string group;   // "op", "prefill", "decode", "context"
  std::string name;    // op or model shape
  std::string detail;  // dtype and sizes
  double x;            // length, batch or context: the charts' axis
  Spread rate;
  std::string unit;
  double ceiling;
};

class Report {
 public:
  explicit Report(const Plan& plan);
  // Figures from here on were measured with `threads` and belong to these ceilings.
  void start(int threads, const Ceilings& ceilings);
  void add(const Figure& figure);

  const nlohmann::ordered_json& json() const { return root_; }

 private:
  nlohmann::ordered_json root_;
  nlohmann::ordered_json* run_ = nullptr;
};

// Rate from seconds a call and work a call; min and max swap.
Spread rate_of(const Spread& time, double work);

}  // namespace m4j::bench
