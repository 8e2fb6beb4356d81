// A device: a team of threads with the ops it runs and the workspace that calls use one after the other, and a GPU if
// the engine computes on one.
#pragma once

#include <memory>
#include <mutex>

#include "mamba4j.h"
#include "ops/ops.h"
#include "runtime/checked.h"
#include "runtime/cuda_device.h"
#include "runtime/fair_mutex.h"
#include "runtime/memory.h"
#include "runtime/team.h"

namespace m4j {

constexpr int64_t kAlignedFloats = 16;  // 64 bytes
inline int64_t align_floats(int64_t n) { return checked_add(n, kAlignedFloats - 1) / kAlignedFloats * kAlignedFloats; }

struct EngineLog {
  m4j_log_fn function = nullptr;
  void* user = nullptr;
};

class Engine {
 public:
  // With a GPU, the threads only prepare weights.
  Engine(int threads, const Ops& ops, std::unique_ptr<CudaDevice> gpu, EngineLog log)
      : ops(ops), gpu(std::move(gpu)), log_(log), team_(threads) {}

  int threads() const { return team_.size(); }

  // printf-style; does nothing without a callback.
  __attribute__((format(printf, 3, 4))) void log(int32_t level, const char* format, ...) const;

  // The right to compute on this engine: callers take turns. Holds workspace for the call.
  class Turn {
   public:
    explicit Turn(Engine& engine) : engine_(engine), lock_(engine.turn_) {}

    // Makes room for `shared` floats and for `scratch` floats a member; throws std::bad_alloc before anything has
    // changed. Room is kept for later calls.
    void reserve(int64_t shared, int64_t scratch);
    float* shared() const { return engine_.workspace_.data(); }

    // Runs body(const Share&) on every member of the team. Body must not throw.
    template <typename Body>
    void run(Body&& body) {
      engine_.team_.run([&](int index) {
        body(Share{index, engine_.threads(), scratch_ + index * scratch_stride_, scratch_stride_});
      });
    }
    void barrier() { engine_.team_.barrier(); }

   private:
    Engine& engine_;
    const std::lock_guard<FairMutex> lock_;
    float* scratch_ = nullptr;
    int64_t scratch_stride_ = 0;
  };

  const Ops& ops;
  const std::unique_ptr<CudaDevice> gpu;  // null on the CPU; used by whoever holds a Turn

 private:
  const EngineLog log_;
  Team team_;
  FairMutex turn_;
  FloatBuffer workspace_;
};

}  // namespace m4j
