#include "runtime/memory.h"

#include <atomic>

namespace m4j {
namespace {
constexpr std::align_val_t kAlignment{64};
std::atomic<int64_t> bytes_in_use{0};
}  // namespace

int64_t counted_bytes() { return bytes_in_use.load(std::memory_order_relaxed); }

void* counted_alloc(std::size_t bytes) {
  void* p = ::operator new(bytes == 0 ? 1 : bytes, kAlignment);
  bytes_in_use.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
  return p;
}

void counted_free(void* p, std::size_t bytes) noexcept {
  if (p == nullptr) return;
  ::operator delete(p, kAlignment);
  bytes_in_use.fetch_sub(static_cast<int64_t>(bytes), std::memory_order_relaxed);
}

}  // namespace m4j
