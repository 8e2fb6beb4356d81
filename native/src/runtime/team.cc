#include "runtime/team.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace m4j {
namespace {

// A barrier inside a run is usually reached by all within a few microseconds; a wait longer than this means that a
// member lost its processor, and then sleeping gives it back sooner than spinning.
constexpr int kBarrierSpins = 4000;
// After a run the members watch for the next one for a moment (a decode loop comes back at once), then sleep.
constexpr int kIdleSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// While it lives, this thread takes subnormal floats as zero. Decays push states and weights through that range all
// the time, and an instruction that meets one costs a hundred times more. The previous mode comes back afterwards: a
// caller (a JVM) relies on it.
class SubnormalsAreZero {
 public:
#if defined(__x86_64__)
  SubnormalsAreZero() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero); }
  ~SubnormalsAreZero() { _mm_setcsr(saved_); }

 private:
  static constexpr uint32_t kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  const uint32_t saved_;
#elif defined(__aarch64__)
  SubnormalsAreZero() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | kFlushToZero));
  }
  ~SubnormalsAreZero() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  static constexpr uint64_t kFlushToZero = uint64_t{1} << 24;
  uint64_t saved_;
#endif
};

// Waits until `value` differs from `old`.
template <typename T>
void wait_for_change(const std::atomic<T>& value, T old, int spins) {
  for (int i = 0; i < spins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team::Team(int threads) : size_(std::max(1, threads)) {
  members_.reserve(static_cast<std::size_t>(size_ - 1));
  try {
    for (int i = 1; i < size_; ++i) members_.emplace_back([this, i] { member_loop(i); });
  } catch (...) {
    shut_down();
    throw;
  }
}

Team::~Team() { shut_down(); }

void Team::shut_down() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& t : members_) t.join();
}

void Team::member_loop(int index) {
  const SubnormalsAreZero mode;
  uint32_t seen = 0;
  for (;;) {
    wait_for_change(epoch_, seen, kIdleSpins);
    ++seen;  // runs never overlap, so no epoch is skipped
    if (stop_.load(std::memory_order_relaxed)) return;
    entry_(body_, index);
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
  }
}

void Team::run_erased(Entry entry, void* body) {
  const std::lock_guard<std::mutex> turn(turn_);
  const SubnormalsAreZero mode;
  if (size_ == 1) {
    entry(body, 0);
    return;
  }
  entry_ = entry;
  body_ = body;
  unfinished_.store(size_ - 1, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  entry(body, 0);
  for (;;) {
    const int32_t left = unfinished_.load(std::memory_order_acquire);
    if (left == 0) return;
    wait_for_change(unfinished_, left, kBarrierSpins);
  }
}

void Team::barrier() {
  if (size_ == 1) return;
  const uint32_t epoch = barrier_epoch_.load(std::memory_order_acquire);
  if (barrier_arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    barrier_arrived_.store(0, std::memory_order_relaxed);
    // A store could still be on its way when notify_all looks whether anybody waits.
    barrier_epoch_.fetch_add(1, std::memory_order_acq_rel);
    barrier_epoch_.notify_all();
  } else {
    wait_for_change(barrier_epoch_, epoch, kBarrierSpins);
  }
}

}  // namespace m4j
