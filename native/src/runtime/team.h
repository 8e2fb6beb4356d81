// A team of threads owned by an engine. `run` executes one function on every member at once (the caller is member 0);
// inside it the members meet at barriers. Between runs the other members sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace m4j {

// Processors that this process may use: the cgroup's CPU quota (v2 and v1, rounded up), the affinity mask, the machine.
int default_thread_count();

class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs body(index) on all members and returns when all are done. One run at a time: callers take turns.
  // Body must not throw. Inside it subnormal floats count as zero.
  template <typename Body>
  void run(Body&& body) {
    run_erased([](void* b, int index) { (*static_cast<std::remove_reference_t<Body>*>(b))(index); }, &body);
  }

  // Inside run: waits until all members are here. Spins briefly, then sleeps.
  void barrier();

 private:
  using Entry = void (*)(void* body, int index);
  void run_erased(Entry entry, void* body);
  void member_loop(int index);
  void shut_down();

  const int size_;
  std::mutex turn_;  // callers of run
  Entry entry_ = nullptr;
  void* body_ = nullptr;
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> epoch_{0};    // counts runs; members wait for a change
  alignas(64) std::atomic<int32_t> unfinished_{0};  // members still inside the current run
  alignas(64) std::atomic<uint32_t> barrier_epoch_{0};
  std::atomic<int32_t> barrier_arrived_{0};
  std::vector<std::thread> members_;
};

}  // namespace m4j
