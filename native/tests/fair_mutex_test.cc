#include "runtime/fair_mutex.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace m4j::test {
namespace {

TEST(FairMutex, WhoHasWaitedIsNext) {
  FairMutex mutex;
  std::vector<int> order;
  mutex.lock();
  std::thread other([&] {
    mutex.lock();
    order.push_back(1);
    mutex.unlock();
  });
  while (!mutex.is_wanted()) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  mutex.unlock();
  mutex.lock();  // at once: a std::mutex would mostly give it back to this thread
  order.push_back(2);
  mutex.unlock();
  other.join();
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(FairMutex, OneAtATime) {
  constexpr int kThreads = 8, kRounds = 2000;
  FairMutex mutex;
  int inside = 0, most = 0, total = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kRounds; ++i) {
        const std::lock_guard<FairMutex> lock(mutex);
        most = std::max(most, ++inside);
        ++total;
        --inside;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
  EXPECT_EQ(total, kThreads * kRounds);
  EXPECT_FALSE(mutex.is_wanted());
}

}  // namespace
}  // namespace m4j::test
