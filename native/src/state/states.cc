#include "state/states.h"

#include <algorithm>

#include "runtime/checked.h"
#include "runtime/failure.h"

namespace m4j {
namespace {

constexpr int64_t kMaxIndex = UINT32_MAX;

// generation << 32 | index; generations start at 1, so 0 is no handle.
uint32_t index_of(m4j_slot handle) { return static_cast<uint32_t>(handle); }
uint32_t generation_of(m4j_slot handle) { return static_cast<uint32_t>(handle >> 32); }
m4j_slot make_handle(uint32_t generation, uint32_t index) { return static_cast<m4j_slot>(generation) << 32 | index; }

// "slots[3]", or "slot" for a call on one slot.
struct Name {
  Name(const char* argument, int64_t index) {
    std::snprintf(text, sizeof text, index < 0 ? "%s" : "%s[%lld]", argument, static_cast<long long>(index));
  }
  char text[48];
};

}  // namespace

States::States(std::shared_ptr<const Model> model, int64_t max_slots)
    : model_(std::move(model)), max_slots_(max_slots == 0 ? kMaxIndex : std::min(max_slots, kMaxIndex)) {}

States::Slot& States::at(m4j_slot handle) { return slots_[index_of(handle)]; }

States::Slot& States::find(m4j_slot handle, const char* argument, int64_t index) {
  if (index_of(handle) >= slots_.size() || !at(handle).taken || at(handle).generation != generation_of(handle)) {
    fail(M4J_ERR_STALE_SLOT, "%s: slot 0x%llx was released or never came from this pool", Name(argument, index).text,
         static_cast<unsigned long long>(handle));
  }
  return at(handle);
}

m4j_slot States::take() {
  const Config& c = model_->config;
  FloatBuffer state(checked_add(c.conv_state(), c.ssm_state()));
  std::fill_n(state.data(), state.size(), 0.0f);

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
    free_.push_back(static_cast<uint32_t>(slots_.size() - 1));
  }
  const uint32_t index = free_.back();
  free_.pop_back();
  Slot& slot = slots_[index];
  slot.taken = true;
  slot.position = 0;
  slot.state = std::move(state);
  ++taken_;
  return make_handle(slot.generation, index);
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
  if (slot.generation != UINT32_MAX) {
    ++slot.generation;
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

int64_t States::Lease::position(int64_t i) const {
  const std::lock_guard<std::mutex> lock(states_.mutex_);
  return states_.at(slots_[i]).position;
}

void States::Lease::set_position(int64_t i, int64_t position) {
  const std::lock_guard<std::mutex> lock(states_.mutex_);
  states_.at(slots_[i]).position = position;
}

}  // namespace m4j
