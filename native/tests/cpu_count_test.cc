#include "runtime/cpu_count.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "runtime/team.h"

namespace m4j {
namespace {

namespace fs = std::filesystem;

// A root folder with the files of a container.
class CpuCountTest : public ::testing::Test {
 protected:
  CpuCountTest() {
    std::string pattern = (fs::temp_directory_path() / "m4j-cgroup-XXXXXX").string();
    root_ = mkdtemp(pattern.data());
  }
  ~CpuCountTest() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    const fs::path file = root_ / path;
    fs::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  int limit() const { return cgroup_cpu_limit(root_.string()); }

 private:
  fs::path root_;
};

TEST_F(CpuCountTest, NoCgroupNoLimit) { EXPECT_EQ(limit(), 0); }

TEST_F(CpuCountTest, Version2QuotaIsRoundedUp) {
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/cpu.max", "150000 100000\n");
  EXPECT_EQ(limit(), 2);
  write("sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(limit(), 2);
  write("sys/fs/cgroup/cpu.max", "200001 100000\n");
  EXPECT_EQ(limit(), 3);
  write("sys/fs/cgroup/cpu.max", "1000 100000\n");
  EXPECT_EQ(limit(), 1);
  write("sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(limit(), 0);
}

TEST_F(CpuCountTest, Version2SmallestLimitOfAllParentsCounts) {
  write("proc/self/cgroup", "0::/service/pod/app\n");
  write("sys/fs/cgroup/service/pod/app/cpu.max", "800000 100000\n");
  write("sys/fs/cgroup/service/pod/cpu.max", "300000 100000\n");
  write("sys/fs/cgroup/service/cpu.max", "max 100000\n");
  EXPECT_EQ(limit(), 3);
}

TEST_F(CpuCountTest, Version2PathOfTheHostFallsBackToTheMount) {
  write("proc/self/cgroup", "0::/docker/0123456789abcdef\n");
  write("sys/fs/cgroup/cpu.max", "400000 100000\n");
  EXPECT_EQ(limit(), 4);
}

TEST_F(CpuCountTest, Version1Quota) {
  write("proc/self/cgroup", "12:memory:/a\n4:cpu,cpuacct:/a/b\n3:cpuset:/a\n");
  write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(limit(), 0);
  write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "250000\n");
  write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(limit(), 3);
}

TEST_F(CpuCountTest, Version1LinkNamedCpu) {
  write("proc/self/cgroup", "4:cpuacct,cpu:/a\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(limit(), 1);
}

TEST_F(CpuCountTest, HybridLooksAtBoth) {
  write("proc/self/cgroup", "4:cpu:/a\n0::/a\n");
  write("sys/fs/cgroup/unified/a/cpu.max", "600000 100000\n");
  write("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "500000\n");
  write("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(limit(), 5);
}

TEST_F(CpuCountTest, NonsenseIsNoLimit) {
  write("proc/self/cgroup", "\nnonsense\n:\n0::/\n4:cpu:/\n");
  write("sys/fs/cgroup/cpu.max", "many\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "");
  EXPECT_EQ(limit(), 0);
  write("sys/fs/cgroup/cpu.max", "-5 0\n");
  EXPECT_EQ(limit(), 0);
  write("sys/fs/cgroup/cpu.max", "1e300 1\n");
  EXPECT_EQ(limit(), 1024);
}

TEST(DefaultThreadCountTest, IsAtLeastOne) { EXPECT_GE(default_thread_count(), 1); }

}  // namespace
}  // namespace m4j
