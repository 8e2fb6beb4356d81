// A pool of sequence states. A slot holds the conv windows and SSM states of one sequence and its position; handles
// carry a generation, so that a released slot's handle never reaches the next owner's data. The states lie in host
// memory, or on the GPU of the model's engine.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "mamba4j.h"
#include "model/model.h"
#include "runtime/memory.h"

namespace m4j {

// The memory of one slot: all conv windows [n_layer, K-1, C], then all SSM states ([n_layer, N, E] in Mamba-1,
// [n_layer, H, P, N] in Mamba-2).
struct SlotView {
  float* conv;
  float* ssm;
};

class States {
 public:
  // max_slots 0: as many as memory allows.
  States(std::shared_ptr<const Model> model, int64_t max_slots);
  ~States();

  const Model& model() const { return *model_; }

  m4j_slot take();
  void release(m4j_slot slot);
  int64_t position(m4j_slot slot);

  // Exclusive use of slots for the time of one call.
  class Lease {
   public:
    // Takes all or throws; `argument` names the handles in messages. The array must outlive the lease.
    Lease(States& states, const char* argument, const m4j_slot* slots, int64_t count);
    Lease(States& states, const m4j_slot& slot) : Lease(states, "slot", &slot, 1) {}
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    // Of states in host memory.
    SlotView view(int64_t i) const;
    // Of states on the GPU.
    int64_t cuda_slot(int64_t i) const;

    void zero(int64_t i) const;
    void copy(int64_t i, const Lease& source, int64_t source_i) const;
    int64_t position(int64_t i) const;
    void set_position(int64_t i, int64_t position);

    States& states() const { return states_; }

   private:
    void give_back(int64_t count);
    States& states_;
    const m4j_slot* const slots_;
    const int64_t count_;
  };

  cuda::States* gpu() const { return gpu_; }  // null on the CPU

 private:
  struct Slot {
    uint32_t generation = 0;
    bool taken = false;
    const Lease* user = nullptr;  // the call that uses it now
    int64_t position = 0;
    FloatBuffer state;
  };
  // The callers of these hold mutex_.
  Slot& find(m4j_slot handle, const char* argument, int64_t index);
  Slot& at(m4j_slot handle);

  const std::shared_ptr<const Model> model_;
  const int64_t max_slots_;
  const uint32_t first_generation_;
  std::mutex mutex_;
  Vector<Slot> slots_;
  Vector<uint32_t> free_;  // indices of slots_; has room for all of them, so that release cannot fail
  int64_t taken_ = 0;
  cuda::States* gpu_ = nullptr;
};

// A leased state in host memory, wherever it really lies: read when this is made unless it will be overwritten anyway,
// written back by store().
class HostState {
 public:
  enum class Content { kRead, kOverwritten };
  HostState(const States::Lease& lease, int64_t i, Content content);
  SlotView view() const { return view_; }
  void store() const;

 private:
  const States::Lease& lease_;
  const int64_t i_;
  FloatBuffer copy_;  // empty if the state lies in host memory
  SlotView view_;
};

}  // namespace m4j
