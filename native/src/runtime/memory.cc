#include "runtime/memory.h"

#include <sys/mman.h>

#include <atomic>

namespace m4j {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
std::atomic<int64_t> bytes_in_use{0};

bool is_large(std::size_t bytes) { return bytes >= 2 * kHugePage; }
std::align_val_t alignment(std::size_t bytes) { return std::align_val_t{is_large(bytes) ? kHugePage : 64}; }

}  // namespace

int64_t counted_bytes() { return bytes_in_use.load(std::memory_order_relaxed); }

void* counted_alloc(std::size_t bytes) {
  void* p = ::operator new(bytes == 0 ? 1 : bytes, alignment(bytes));
  // The first touch of a page costs a virtual machine several microseconds: more than filling it. A refusal is harmless.
  if (is_large(bytes)) madvise(p, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  bytes_in_use.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
  return p;
}

void counted_free(void* p, std::size_t bytes) noexcept {
  if (p == nullptr) return;
  ::operator delete(p, alignment(bytes));
  bytes_in_use.fetch_sub(static_cast<int64_t>(bytes), std::memory_order_relaxed);
}

}  // namespace m4j
