// Repeated timing on a noisy machine: every figure keeps its spread.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <vector>

namespace m4j::bench {

struct Spread {
  double median, min, max;
  int samples;
};

inline Spread spread_of(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return {v[v.size() / 2], v.front(), v.back(), static_cast<int>(v.size())};
}

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds a call: `repeat` samples after one warm-up; short calls are repeated inside a sample to fill `min_sample`.
template <typename Call>
Spread time_call(Call&& call, int repeat, double min_sample = 0.02) {
  const double t0 = seconds();
  call();
  const double once = seconds() - t0;
  const int inner = std::max(1, static_cast<int>(min_sample / std::max(once, 1e-9)));
  std::vector<double> samples;
  for (int r = 0; r < repeat; ++r) {
    const double start = seconds();
    for (int i = 0; i < inner; ++i) call();
    samples.push_back((seconds() - start) / inner);
  }
  return spread_of(std::move(samples));
}

// Relative norm error of `got` against as many floats at `want`; NaN if anything is.
inline double relative_error(const std::vector<float>& got, const float* want) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = static_cast<double>(got[i]) - want[i];
    error += d * d;
    norm += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(error / std::max(norm, 1e-30));
}

}  // namespace m4j::bench
