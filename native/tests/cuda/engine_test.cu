// How a step without logits waits for its end.
#include "cuda/engine.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "runtime/failure.h"

namespace m4j::cuda::test {
namespace {

__global__ void trap_kernel() { asm volatile("trap;"); }

TEST(CudaEngineWait, ForAFlag) {
  const Engine engine(0);
  const PinnedBuffer memory(sizeof(unsigned));
  auto* flag = reinterpret_cast<unsigned*>(memory.data());
  *flag = 0;
  ASSERT_EQ(cudaMemsetAsync(flag, 1, sizeof(unsigned), engine.stream), cudaSuccess);
  engine.wait_for(flag);
  EXPECT_NE(*flag, 0u);
}

TEST(CudaEngineWait, NoLongerThanTheStreamTakes) {
  const Engine engine(0);
  const PinnedBuffer memory(2 * sizeof(unsigned));
  auto* flag = reinterpret_cast<unsigned*>(memory.data());
  flag[0] = 0;
  ASSERT_EQ(cudaMemsetAsync(flag + 1, 1, sizeof(unsigned), engine.stream), cudaSuccess);
  engine.wait_for(flag);
  EXPECT_EQ(flag[0], 0u);
}

[[noreturn]] void wait_for_a_kernel_that_fails() {
  const Engine engine(0);
  const PinnedBuffer memory(sizeof(unsigned));
  auto* flag = reinterpret_cast<unsigned*>(memory.data());
  *flag = 0;
  trap_kernel<<<1, 1, 0, engine.stream>>>();
  try {
    engine.wait_for(flag);
  } catch (const Failure&) {
    std::_Exit(0);
  }
  std::_Exit(1);
}

// In a process of its own, which cannot use the GPU any more afterwards.
TEST(CudaEngineDeathTest, FindsAKernelThatFails) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(wait_for_a_kernel_that_fails(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace m4j::cuda::test
