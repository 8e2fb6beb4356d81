#include "support/failing_alloc.h"

#include <cstdlib>
#include <new>

namespace {
thread_local bool failing = false;
thread_local int allowed_left = 0;
}  // namespace

void* operator new(std::size_t bytes, std::align_val_t alignment) {
  if (failing && allowed_left-- <= 0) throw std::bad_alloc();
  const std::size_t unit = static_cast<std::size_t>(alignment);
  void* p = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace m4j::test {

FailingAlloc::FailingAlloc(int allowed) {
  allowed_left = allowed;
  failing = true;
}
FailingAlloc::~FailingAlloc() { failing = false; }

}  // namespace m4j::test

// Sanitizers end a process that asks for more memory than there can be, unless they are told to refuse it.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __tsan_default_options() { return "allocator_may_return_null=1"; }
