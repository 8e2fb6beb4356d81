#include "state/states.h"

#include <algorithm>
#include <atomic>
#include <functional>

#include "runtime/checked.h"
#include "runtime/failure.h"

namespace m4j {
namespace {

constexpr int64_t kMaxIndex = UINT32_MAX;

// generation << 32 | index; no generation is 0, so 0 is no handle.
uint32_t index_of(m4j_slot handle) { return static_cast<uint32_t>(handle); }
uint32_t generation_of(m4j_slot handle) { return static_cast<uint32_t>(handle >> 32); }
m4j_slot make_handle(uint32_t generation, uint32_t index) { return static_cast<m4j_slot>(generation) << 32 | index; }

// Far from those of the process's other pools, so that their handles do not fit.
uint32_t first_generation() {
  static std::atomic<uint32_t> pools = 0;
  return std::max(1u, pools.fetch_add(1, std::memory_order_relaxed) * 0x9e3779b1u);
}

// Slot 0 of the GPU's pool is not for sequences.
int64_t cuda_slot_of(m4j_slot handle) { return int64_t{index_of(handle)} + 1; }

// "slots[3]", or "slot" for a call on one slot.
struct Name {
  Name(const char* argument, int64_t index) {
    std::snprintf(text, sizeof text, index < 0 ? "%s" : "%s[%lld]", argument, static_cast<long long>(index));
  }
  char text[48];
};

}  // namespace

States::States(std::shared_ptr<const Model> model, int64_t max_slots)
    : model_(std::move(model)), max_slots_(max_slots == 0 ? kMaxIndex : std::min(max_slots, kMaxIndex)),
      first_generation_(first_generation()) {
  if (model_->gpu != nullptr) {
    const Engine::Turn turn(*model_->engine);
    CudaDevice::call(model_->engine->gpu->api.states_create, model_->gpu, max_slots_, &gpu_);
  }
}

States::~States() {
  if (gpu_ == nullptr) return;
  const Engine::Turn turn(*model_->engine);
  model_->engine->gpu->api.states_release(gpu_);
}

States::Slot& States::at(m4j_slot handle) { return slots_[index_of(handle)]; }

States::Slot& States::find(m4j_slot handle, const char* argument, int64_t index) {
  if (index_of(handle) >= slots_.size() || !at(handle).taken || at(handle).generation != generation_of(handle)) {
    fail(M4J_ERR_STALE_SLOT, "%s: slot 0x%llx was released or never came from this pool", Name(argument, index).text,
         static_cast<unsigned long long>(handle));
  }
  return at(handle);
}

m4j_slot States::take() {
  FloatBuffer state;
  if (gpu_ == nullptr) {
    state = FloatBuffer(checked_add(model_->config.conv_state(), model_->config.ssm_state()));
    std::fill_n(state.data(), state.size(), 0.0f);
  }
  m4j_slot handle;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (taken_ == max_slots_) {
      fail(M4J_ERR_EXHAUSTED, "the pool holds %lld slots, as many as it may; release one first",
           static_cast<long long>(taken_));
    }
    if (free_.empty()) {
      if (static_cast<int64_t>(slots_.size()) == kMaxIndex) {
        fail(M4J_ERR_EXHAUSTED, "all %lld slot numbers are used up", static_cast<long long>(kMaxIndex));
      }
      if (free_.capacity() <= slots_.size()) free_.reserve(2 * slots_.size() + 1);
      slots_.emplace_back();
      slots_.back().generation = first_generation_;
      free_.push_back(static_cast<uint32_t>(slots_.size() - 1));
    }
    const uint32_t index = free_.back();
    free_.pop_back();
    Slot& slot = slots_[index];
    slot.taken = true;
    slot.position = 0;
    slot.state = std::move(state);
    ++taken_;
    handle = make_handle(slot.generation, index);
  }
  if (gpu_ == nullptr) return handle;
  try {  // nobody else knows the handle yet
    const CudaDevice& device = *model_->engine->gpu;
    const Engine::Turn turn(*model_->engine);
    CudaDevice::call(device.api.states_reserve, gpu_, cuda_slot_of(handle) + 1);
    CudaDevice::call(device.api.slot_zero, gpu_, cuda_slot_of(handle));
  } catch (...) {
    release(handle);
    // One that has memory, and was released meanwhile, is to be taken before this one.
    const std::lock_guard<std::mutex> lock(mutex_);
    std::sort(free_.begin(), free_.end(), std::greater<>());
    throw;
  }
  return handle;
}

void States::release(m4j_slot handle) {
  FloatBuffer state;  // freed after the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  Slot& slot = find(handle, "slot", -1);
  if (slot.user != nullptr) fail(M4J_ERR_BUSY, "slot: another call is using it");
  state = std::move(slot.state);
  slot.taken = false;
  --taken_;
  // A slot whose generations are used up stays unused, or an old handle would fit again.
  const uint32_t next = std::max(1u, slot.generation + 1);
  if (next != first_generation_) {
    slot.generation = next;
    free_.push_back(index_of(handle));
  }
}

int64_t States::position(m4j_slot handle) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Slot& slot = find(handle, "slot", -1);
  if (slot.user != nullptr) fail(M4J_ERR_BUSY, "slot: another call is using it");
  return slot.position;
}

States::Lease::Lease(States& states, const char* argument, const m4j_slot* slots, int64_t count)
    : states_(states), slots_(slots), count_(count) {
  const std::lock_guard<std::mutex> lock(states_.mutex_);
  int64_t i = 0;
  try {
    for (; i < count_; ++i) {
      const int64_t index = count_ == 1 ? -1 : i;
      Slot& slot = states_.find(slots_[i], argument, index);
      if (slot.user == this) {
        fail(M4J_ERR_INVALID_ARGUMENT, "%s: slot 0x%llx occurs twice in one call", Name(argument, index).text,
             static_cast<unsigned long long>(slots_[i]));
      }
      if (slot.user != nullptr) {
        fail(M4J_ERR_BUSY, "%s: another call is using this slot", Name(argument, index).text);
      }
      slot.user = this;
    }
  } catch (...) {
    give_back(i);
    throw;
  }
}

States::Lease::~Lease() {
  const std::lock_guard<std::mutex> lock(states_.mutex_);
  give_back(count_);
}

void States::Lease::give_back(int64_t count) {
  for (int64_t i = 0; i < count; ++i) states_.at(slots_[i]).user = nullptr;
}

SlotView States::Lease::view(int64_t i) const {
  const std::lock_guard<std::mutex> lock(states_.mutex_);
  float* state = states_.at(slots_[i]).state.data();
  return {state, state + states_.model_->config.conv_state()};
}

int64_t States::Lease::cuda_slot(int64_t i) const { return cuda_slot_of(slots_[i]); }

void States::Lease::zero(int64_t i) const {
  const Model& model = *states_.model_;
  if (states_.gpu_ != nullptr) {
    const Engine::Turn turn(*model.engine);
    CudaDevice::call(model.engine->gpu->api.slot_zero, states_.gpu_, cuda_slot(i));
  } else {
    std::fill_n(view(i).conv, model.config.conv_state() + model.config.ssm_state(), 0.0f);
  }
}

void States::Lease::copy(int64_t i, const Lease& source, int64_t source_i) const {
  const Model& model = *states_.model_;
  if (states_.gpu_ != nullptr) {
    const Engine::Turn turn(*model.engine);
    CudaDevice::call(model.engine->gpu->api.slot_copy, states_.gpu_, cuda_slot(i), source.cuda_slot(source_i));
  } else {
    std::copy_n(source.view(source_i).conv, model.config.conv_state() + model.config.ssm_state(), view(i).conv);
  }
}

int64_t States::Lease::position(int64_t i) const {
  const std::lock_guard<std::mutex> lock(states_.mutex_);
  return states_.at(slots_[i]).position;
}

void States::Lease::set_position(int64_t i, int64_t position) {
  const std::lock_guard<std::mutex> lock(states_.mutex_);
  states_.at(slots_[i]).position = position;
}

HostState::HostState(const States::Lease& lease, int64_t i, Content content) : lease_(lease), i_(i) {
  States& states = lease.states();
  if (states.gpu() == nullptr) {
    view_ = lease.view(i);
    return;
  }
  const Model& model = states.model();
  copy_ = FloatBuffer(checked_add(model.config.conv_state(), model.config.ssm_state()));
  view_ = {copy_.data(), copy_.data() + model.config.conv_state()};
  if (content == Content::kOverwritten) return;
  const Engine::Turn turn(*model.engine);
  CudaDevice::call(model.engine->gpu->api.slot_read, states.gpu(), lease.cuda_slot(i), copy_.data());
}

void HostState::store() const {
  States& states = lease_.states();
  if (states.gpu() == nullptr) return;
  const Model& model = states.model();
  const Engine::Turn turn(*model.engine);
  CudaDevice::call(model.engine->gpu->api.slot_write, states.gpu(), lease_.cuda_slot(i_), copy_.data());
}

}  // namespace m4j
