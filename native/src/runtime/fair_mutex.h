// A mutex whose waiters are not overtaken for long: with std::mutex, a thread that locks again at once passes all that
// sleep, however often. For a millisecond it may do so here too, as waking somebody up takes longer than a short call.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace m4j {

class FairMutex {
 public:
  void lock() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!held_) {
      held_ = true;
      return;
    }
    Waiter me;
    *end_ = &me;
    end_ = &me.next;
    me.go.wait(lock, [&] { return me.has_it || (!held_ && first_ == &me); });
    if (me.has_it) return;
    held_ = true;
    pop();
  }

  void unlock() {
    // Under the lock, without which the waiter could be gone.
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = false;
    Waiter* const waiter = first_;
    if (waiter == nullptr) return;
    if (Clock::now() - waiter->since >= kPatience) {
      held_ = waiter->has_it = true;
      pop();
    }
    waiter->go.notify_one();
  }

  // Whether anybody waits at the moment.
  bool is_wanted() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return first_ != nullptr;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPatience{1};
  struct Waiter {  // on the stack of who waits
    std::condition_variable go;
    const Clock::time_point since = Clock::now();
    bool has_it = false;
    Waiter* next = nullptr;
  };

  void pop() {
    first_ = first_->next;
    if (first_ == nullptr) end_ = &first_;
  }

  std::mutex mutex_;
  bool held_ = false;
  Waiter* first_ = nullptr;
  Waiter** end_ = &first_;
};

}  // namespace m4j
