// Memory of an engine's device, and copies to and from it.
#include <cstring>

#include "api/error.h"
#include "api/handles.h"

namespace m4j {
namespace {

void check_bytes(int64_t bytes) {
  if (bytes < 0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "bytes: is %lld, expected 0 or more", static_cast<long long>(bytes));
  }
}

void copy_bytes(Engine& engine, void* to, const void* from, int64_t bytes, int32_t direction) {
  check_bytes(bytes);
  if (direction < M4J_TO_DEVICE || direction > M4J_ON_DEVICE) {
    fail(M4J_ERR_INVALID_ARGUMENT, "direction: is %d, expected M4J_TO_DEVICE, M4J_TO_HOST or M4J_ON_DEVICE", direction);
  }
  if (bytes == 0) return;
  require(to, "to");
  require(from, "from");
  const auto target = reinterpret_cast<uintptr_t>(to), source = reinterpret_cast<uintptr_t>(from);
  const auto size = static_cast<uintptr_t>(bytes);
  if (target - source < size || source - target < size) {
    fail(M4J_ERR_INVALID_ARGUMENT, "to, from: %lld bytes at %p and at %p overlap", static_cast<long long>(bytes), to,
         from);
  }
  if (engine.gpu == nullptr) {
    std::memcpy(to, from, size);
    return;
  }
  const Engine::Turn turn(engine);
  CudaDevice::call(engine.gpu->api.copy_bytes, engine.gpu->engine, to, from, bytes, direction);
}

}  // namespace
}  // namespace m4j

m4j_status m4j_buffer_create(m4j_engine* engine, int64_t bytes, m4j_buffer** out, m4j_error* err) {
  using namespace m4j;
  return guarded(err, [&] {
    require(engine, "engine");
    require(out, "out");
    check_bytes(bytes);
    *out = new_handle<m4j_buffer>(std::shared_ptr<const Buffer>(make_counted<Buffer>(engine->impl, bytes)));
  });
}

void m4j_buffer_release(m4j_buffer* buffer) { m4j::delete_handle(buffer); }

void* m4j_buffer_data(const m4j_buffer* buffer) { return buffer == nullptr ? nullptr : buffer->impl->data(); }

m4j_status m4j_copy_bytes(m4j_engine* engine, void* to, const void* from, int64_t bytes, int32_t direction,
                          m4j_error* err) {
  return m4j::guarded(err, [&] { m4j::copy_bytes(*m4j::require(engine, "engine")->impl, to, from, bytes, direction); });
}
