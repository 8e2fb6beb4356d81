#include "api/error.h"
#include "api/handles.h"
#include "state/snapshot.h"

namespace m4j {
namespace {

States& pool(m4j_states* states) { return *require(states, "states")->impl; }

void check_capacity(const char* name, int64_t capacity, int64_t needed, const char* unit) {
  if (capacity < needed) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: is %lld, expected at least %lld %s", name, static_cast<long long>(capacity),
         static_cast<long long>(needed), unit);
  }
}

void check_float_pointer(const char* name, const float* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(float) != 0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: address %p is not aligned to 4 bytes", name,
         static_cast<const void*>(pointer));
  }
}

void reset(States& states, m4j_slot slot) {
  States::Lease lease(states, slot);
  lease.zero(0);
  lease.set_position(0, 0);
}

void copy(States& states, m4j_slot target, m4j_slot source) {
  States::Lease target_lease(states, "target", &target, 1);
  if (target == source) return;
  States::Lease source_lease(states, "source", &source, 1);
  target_lease.copy(0, source_lease, 0);
  target_lease.set_position(0, source_lease.position(0));
}

void read(States& states, m4j_slot slot, float* conv, int64_t conv_capacity, float* ssm, int64_t ssm_capacity) {
  const Config& c = states.model().config;
  if (conv != nullptr) check_capacity("conv_capacity", conv_capacity, c.conv_state(), "floats");
  if (ssm != nullptr) check_capacity("ssm_capacity", ssm_capacity, c.ssm_state(), "floats");
  check_float_pointer("conv", conv);
  check_float_pointer("ssm", ssm);
  States::Lease lease(states, slot);
  const HostState state(lease, 0, HostState::Content::kRead);
  if (conv != nullptr) read_conv(c, state.view(), conv);
  if (ssm != nullptr) read_ssm(c, state.view(), ssm);
}

}  // namespace
}  // namespace m4j

m4j_status m4j_states_create(m4j_model* model, int64_t max_slots, m4j_states** out, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    require(model, "model");
    require(out, "out");
    if (max_slots < 0) {
      fail(M4J_ERR_INVALID_ARGUMENT, "max_slots: is %lld, expected 0 (no limit) or more",
           static_cast<long long>(max_slots));
    }
    *out = new_handle<m4j_states>(make_counted<States>(model->impl, max_slots));
  });
}

void m4j_states_release(m4j_states* states) { m4j::delete_handle(states); }

m4j_status m4j_slot_take(m4j_states* states, m4j_slot* out, m4j_error* err) {
  return m4j::guarded(err, [&] {
    m4j::States& pool = m4j::pool(states);
    m4j::require(out, "out");
    *out = pool.take();
  });
}

m4j_status m4j_slot_release(m4j_states* states, m4j_slot slot, m4j_error* err) {
  return m4j::guarded(err, [&] { m4j::pool(states).release(slot); });
}

m4j_status m4j_slot_reset(m4j_states* states, m4j_slot slot, m4j_error* err) {
  return m4j::guarded(err, [&] { m4j::reset(m4j::pool(states), slot); });
}

m4j_status m4j_slot_copy(m4j_states* states, m4j_slot target, m4j_slot source, m4j_error* err) {
  return m4j::guarded(err, [&] { m4j::copy(m4j::pool(states), target, source); });
}

m4j_status m4j_slot_position(m4j_states* states, m4j_slot slot, int64_t* out, m4j_error* err) {
  return m4j::guarded(err, [&] {
    m4j::States& pool = m4j::pool(states);
    m4j::require(out, "out");
    *out = pool.position(slot);
  });
}

int64_t m4j_slot_export_size(const m4j_model* model) {
  return model == nullptr ? 0 : m4j::snapshot_size(model->impl->config);
}

m4j_status m4j_slot_export(m4j_states* states, m4j_slot slot, void* buffer, int64_t capacity, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    States& slots = pool(states);
    require(buffer, "buffer");
    check_capacity("capacity", capacity, snapshot_size(slots.model().config), "bytes");
    const States::Lease lease(slots, slot);
    const HostState state(lease, 0, HostState::Content::kRead);
    export_snapshot(slots.model(), state.view(), lease.position(0), buffer);
  });
}

m4j_status m4j_slot_import(m4j_states* states, m4j_slot slot, const void* buffer, int64_t size, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    States& slots = pool(states);
    require(buffer, "buffer");
    States::Lease lease(slots, slot);
    const HostState state(lease, 0, HostState::Content::kOverwritten);
    const int64_t position = import_snapshot(slots.model(), state.view(), buffer, size);
    state.store();
    lease.set_position(0, position);
  });
}

m4j_status m4j_slot_read(m4j_states* states, m4j_slot slot, float* conv, int64_t conv_capacity, float* ssm,
                         int64_t ssm_capacity, m4j_error* err) {
  return m4j::guarded(err, [&] {
    m4j::read(m4j::pool(states), slot, conv, conv_capacity, ssm, ssm_capacity);
  });
}
