// Running one op of one backend on teams of several sizes and in several memory layouts, and judging its numbers.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.h"
#include "runtime/team.h"
#include "support/guarded.h"
#include "support/random.h"

namespace m4j::test {

// What an op leaves: its output, and the state, window or residual stream where it has one.
struct Outputs {
  std::vector<float> out;
  std::vector<float> state;
};

// Exact values with the size of the rounding error to be expected in each: the root of the sum of the squared terms it
// is made of, which is the value's own typical size unless the terms happen to cancel.
struct Expected {
  std::vector<double> value;
  std::vector<double> scale;

  void add(double v, double s) {
    value.push_back(v);
    scale.push_back(s);
  }
};

// Relative norm error allowed to float32 code that adds `terms` numbers: the rounding of elementary functions, then
// random-walk growth; never above the project's 1e-5.
double tolerance(int64_t terms);

// Relative norm error |actual - expected| / |max(expected, scale)|; all must be finite.
void expect_close(const std::vector<float>& actual, const Expected& expected, double tolerance);
void expect_close(const std::vector<float>& actual, const std::vector<float>& expected, double tolerance);
void expect_close(const Outputs& actual, const Outputs& expected, double tolerance);
void expect_same_bits(const std::vector<float>& actual, const std::vector<float>& expected);
void expect_same_bits(const Outputs& actual, const Outputs& expected);

double sum_of_squares_root(double a, double b);

// Rows [begin, end) of a matrix with rows of `cols`; an absent one stays absent.
template <typename T>
std::vector<T> slice_rows(const std::vector<T>& v, int64_t cols, int64_t begin, int64_t end) {
  if (v.empty()) return {};
  return {v.begin() + begin * cols, v.begin() + end * cols};
}

template <typename T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

// Where and by whom a run is executed.
struct Runner {
  const Ops& ops;
  Team& team;
  Layout layout;

  Guarded<float> in(const std::vector<float>& values, int64_t cols) const {
    return Guarded<float>::input(values, cols, layout);
  }
  // Vectors and states, which have no row stride.
  Guarded<float> flat_in(const std::vector<float>& values) const {
    return Guarded<float>::input(values, static_cast<int64_t>(values.size()), layout);
  }
  Guarded<float> flat_inout(const std::vector<float>& values) const {
    return Guarded<float>::inout(values, static_cast<int64_t>(values.size()), layout);
  }
  Guarded<float> out(int64_t rows, int64_t cols) const { return Guarded<float>::output(rows, cols, layout); }

  // All members of the team run `op`, each with poisoned scratch memory of its own.
  template <typename Args>
  void execute(void (*op)(const Args&, const Share&), const Args& args, int64_t scratch_floats = 0) const {
    constexpr int64_t kLine = 16;  // floats: scratch is aligned to 64 bytes
    std::vector<Guarded<float>> scratch;
    for (int i = 0; i < team.size(); ++i) {
      scratch.push_back(Guarded<float>::output((scratch_floats + kLine - 1) / kLine, kLine,
                                               {Placement::kEndsAtGuard, 0}));
    }
    team.run([&](int index) {
      op(args, {index, team.size(), scratch[static_cast<size_t>(index)].data(), scratch_floats});
    });
  }
};

// One backend's ops, with random inputs of the test's own.
class OpTest : public ::testing::TestWithParam<const Ops*> {
 protected:
  OpTest();

  const Ops& ops() const { return *GetParam(); }

  // run(runner) on teams of 1, 2, 3 and 5 members in all layouts: always the same bits.
  template <typename Run>
  Outputs run_everywhere(Run&& run) {
    const Outputs first = run(plain_runner());
    for (int size : {1, 2, 3, 5}) {
      for (const Layout& layout : kLayouts) {
        SCOPED_TRACE("team of " + std::to_string(size) + ", placement " +
                     std::to_string(static_cast<int>(layout.placement)) + ", gap " + std::to_string(layout.gap));
        expect_same_bits(run(Runner{ops(), team(size), layout}), first);
        if (HasFailure()) return first;
      }
    }
    return first;
  }
  Runner plain_runner() { return {ops(), team(1), kLayouts[0]}; }

  Random random;

 private:
  static Team& team(int size);
  const ::testing::ScopedTrace seed_trace_;
};

std::vector<const Ops*> backends();
std::string backend_name(const ::testing::TestParamInfo<const Ops*>& info);

// A fixture of its own for the op, instantiated for every backend that this processor runs.
#define M4J_OP_TEST_SUITE(Suite)                \
  class Suite : public ::m4j::test::OpTest {};  \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite, ::testing::ValuesIn(::m4j::test::backends()), ::m4j::test::backend_name)

}  // namespace m4j::test
