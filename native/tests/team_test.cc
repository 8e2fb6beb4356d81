#include "runtime/team.h"

#include <gtest/gtest.h>
#include <time.h>

#include <chrono>
#include <thread>
#include <vector>

namespace m4j {
namespace {

class TeamTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, TeamTest, ::testing::Values(1, 2, 3, 5, 8));

TEST_P(TeamTest, EveryMemberRunsOncePerRun) {
  Team team(GetParam());
  ASSERT_EQ(team.size(), GetParam());
  std::vector<int> calls(static_cast<size_t>(GetParam()), 0);
  for (int run = 1; run <= 200; ++run) {
    team.run([&](int index) { ++calls[static_cast<size_t>(index)]; });
    for (int count : calls) ASSERT_EQ(count, run);
  }
}

// Each member reads after the barrier what its neighbour wrote before it.
TEST_P(TeamTest, BarrierOrdersWritesBeforeReads) {
  const int size = GetParam();
  Team team(size);
  std::vector<int> slots(static_cast<size_t>(size), -1), errors(static_cast<size_t>(size), 0);
  team.run([&](int index) {
    for (int step = 0; step < 500; ++step) {
      slots[static_cast<size_t>(index)] = step;
      team.barrier();
      if (slots[static_cast<size_t>((index + 1) % size)] != step) ++errors[static_cast<size_t>(index)];
      team.barrier();
    }
  });
  for (int e : errors) EXPECT_EQ(e, 0);
}

TEST_P(TeamTest, CallersTakeTurns) {
  Team team(GetParam());
  int inside = 0, overlaps = 0, runs = 0;  // guarded by the team's turn: only member 0 touches them
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        team.run([&](int index) {
          if (index != 0) return;
          if (++inside != 1) ++overlaps;
          ++runs;
          --inside;
        });
      }
    });
  }
  for (std::thread& t : callers) t.join();
  EXPECT_EQ(overlaps, 0);
  EXPECT_EQ(runs, 200);
}

// The smallest normal number, halved at run time.
float half_of_smallest() {
  volatile float smallest = 0x1p-126f;
  return smallest * 0.5f;
}

TEST_P(TeamTest, SubnormalsAreZeroInsideARunOnly) {
  Team team(GetParam());
  ASSERT_GT(half_of_smallest(), 0.0f);
  std::vector<float> inside(static_cast<size_t>(GetParam()), -1.0f);
  team.run([&](int index) { inside[static_cast<size_t>(index)] = half_of_smallest(); });
  for (float value : inside) EXPECT_EQ(value, 0.0f);
  EXPECT_GT(half_of_smallest(), 0.0f);
}

double process_cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Idle members must sleep: over a quarter of a second seven spinning ones would burn far more than this bound, again and
// again. (A virtual machine may be charged once for time that its host has taken.)
TEST(Team, IdleMembersDoNotSpin) {
  Team team(8);
  team.run([](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  double burnt = 1;
  for (int attempt = 0; attempt < 4 && burnt >= 0.05; ++attempt) {
    const double before = process_cpu_seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    burnt = process_cpu_seconds() - before;
  }
  EXPECT_LT(burnt, 0.05);
}

}  // namespace
}  // namespace m4j
