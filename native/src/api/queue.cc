// Asynchronous calls: a thread of the queue makes them one after the other and lays their completions out for whoever
// comes to take them. Nothing is allocated between submission and completion, so that a completion cannot fail.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <list>
#include <mutex>
#include <optional>
#include <thread>

#include "api/advance.h"
#include "api/error.h"
#include "api/handles.h"
#include "model/advance.h"

namespace m4j {

class AdvanceQueue {
 public:
  explicit AdvanceQueue(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}
  ~AdvanceQueue() {
    close();
    if (thread_.joinable()) thread_.join();
  }

  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    submitted_.notify_one();
    completed_.notify_all();
  }

  void submit(const std::shared_ptr<States>& states, const m4j_advance_args* args, uint64_t tag) {
    if (states->model().engine != engine_) {
      fail(M4J_ERR_INVALID_ARGUMENT, "states: are of another engine than the queue");
    }
    Calls call;
    call.emplace_back(states, checked_advance(*states, args), tag);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) fail(M4J_ERR_EXHAUSTED, "queue: is closed");
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    waiting_.splice(waiting_.end(), call);
    submitted_.notify_one();
  }

  void next(int64_t timeout_ms, m4j_completion* out) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto done = [&] { return !completions_.empty() || (closed_ && waiting_.empty() && running_.empty()); };
    if (timeout_ms < 0) {
      completed_.wait(lock, done);
    } else {
      constexpr int64_t kLongest = 1'000'000'000;  // what clocks can be added to
      if (!completed_.wait_for(lock, std::chrono::milliseconds(std::min(timeout_ms, kLongest)), done)) {
        fail(M4J_ERR_BUSY, "queue: no call has ended within %lld ms", static_cast<long long>(timeout_ms));
      }
    }
    if (completions_.empty()) fail(M4J_ERR_EXHAUSTED, "queue: is closed, and all completions are taken");
    *out = completions_.front().completion;
    completions_.pop_front();
  }

 private:
  struct Call {
    Call(std::shared_ptr<States> pool, const m4j_advance_args& a, uint64_t tag) : states(std::move(pool)), args(a) {
      lease.emplace(*states, "slots", args.slots, args.n_seqs);
      completion.tag = tag;
    }
    void run() {
      guarded(&completion.error, [&] { advance(*lease, args); });
      lease.reset();  // whoever learns of the completion may use the slots, and release the states
      states.reset();
    }
    std::shared_ptr<States> states;
    const m4j_advance_args args;
    std::optional<States::Lease> lease;
    m4j_completion completion{};
  };
  using Calls = std::list<Call, CountedAllocator<Call>>;

  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      submitted_.wait(lock, [&] { return closed_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      running_.splice(running_.end(), waiting_, waiting_.begin());
      lock.unlock();
      running_.front().run();
      lock.lock();
      completions_.splice(completions_.end(), running_);
      if (closed_) {
        completed_.notify_all();
      } else {
        completed_.notify_one();
      }
    }
  }

  const std::shared_ptr<Engine> engine_;
  std::mutex mutex_;
  std::condition_variable submitted_, completed_;
  bool closed_ = false;
  Calls waiting_, running_, completions_;  // running_ has at most one
  std::thread thread_;
};

}  // namespace m4j

m4j_status m4j_queue_create(m4j_engine* engine, m4j_queue** out, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    require(engine, "engine");
    require(out, "out");
    *out = new_handle<m4j_queue>(make_counted<AdvanceQueue>(engine->impl));
  });
}

void m4j_queue_release(m4j_queue* queue) { m4j::delete_handle(queue); }

void m4j_queue_close(m4j_queue* queue) {
  if (queue != nullptr) queue->impl->close();
}

m4j_status m4j_queue_advance(m4j_queue* queue, m4j_states* states, const m4j_advance_args* args, uint64_t tag,
                             m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    AdvanceQueue& calls = *require(queue, "queue")->impl;
    calls.submit(require(states, "states")->impl, args, tag);
  });
}

m4j_status m4j_queue_next(m4j_queue* queue, int64_t timeout_ms, m4j_completion* out, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    AdvanceQueue& calls = *require(queue, "queue")->impl;
    calls.next(timeout_ms, require(out, "out"));
  });
}
