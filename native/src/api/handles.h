// The opaque handles: each holds one count of what it names.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

#include "mamba4j.h"
#include "model/model.h"
#include "runtime/buffer.h"
#include "runtime/engine.h"
#include "runtime/failure.h"
#include "runtime/memory.h"
#include "state/states.h"

namespace m4j {
class AdvanceQueue;
}

struct m4j_engine {
  std::shared_ptr<m4j::Engine> impl;
};
struct m4j_buffer {
  std::shared_ptr<const m4j::Buffer> impl;
};
struct m4j_model {
  std::shared_ptr<const m4j::Model> impl;
};
struct m4j_states {
  std::shared_ptr<m4j::States> impl;
};
struct m4j_queue {
  std::shared_ptr<m4j::AdvanceQueue> impl;
};

namespace m4j {

template <typename T, typename... Args>
std::shared_ptr<T> make_counted(Args&&... args) {
  return std::allocate_shared<T>(CountedAllocator<T>(), std::forward<Args>(args)...);
}

template <typename Handle, typename Impl>
Handle* new_handle(std::shared_ptr<Impl> impl) {
  return new (counted_alloc(sizeof(Handle))) Handle{std::move(impl)};
}

template <typename Handle>
void delete_handle(Handle* handle) noexcept {
  if (handle == nullptr) return;
  handle->~Handle();
  counted_free(handle, sizeof(Handle));
}

template <typename T>
T* require(T* pointer, const char* name) {
  if (pointer == nullptr) fail(M4J_ERR_INVALID_ARGUMENT, "%s: is NULL", name);
  return pointer;
}

// Args structs of an older header lack fields that this library reads.
template <typename Args>
const Args& require_args(const Args* args, const char* name) {
  require(args, name);
  if (args->struct_size < sizeof(Args)) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: struct_size is %llu, expected at least %zu", name,
         static_cast<unsigned long long>(args->struct_size), sizeof(Args));
  }
  return *args;
}

// The args of a struct that has grown: fields of older headers end before `first_new`, and the rest is zero.
template <typename Args>
Args read_args(const Args* args, std::size_t first_new, const char* name) {
  require(args, name);
  if (args->struct_size < first_new) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: struct_size is %llu, expected at least %zu", name,
         static_cast<unsigned long long>(args->struct_size), first_new);
  }
  Args copy{};
  std::memcpy(&copy, args, args->struct_size < sizeof(Args) ? args->struct_size : sizeof(Args));
  return copy;
}

inline void require_reserved_zero(int32_t reserved, const char* name) {
  if (reserved != 0) fail(M4J_ERR_INVALID_ARGUMENT, "%s.reserved: is %d, expected 0", name, reserved);
}

}  // namespace m4j
