#include "support/guarded.h"

#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <stdexcept>

namespace m4j::test {
namespace {

// Writable pages by their size, for the thread that makes the matrices.
std::map<size_t, std::vector<std::byte*>>& kept_pages() {
  static std::map<size_t, std::vector<std::byte*>> kept;
  return kept;
}

size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

void protect(std::byte* begin, size_t bytes, int how) {
  if (mprotect(begin, bytes, how) != 0) throw std::runtime_error("mprotect");
}

}  // namespace

GuardedPages::GuardedPages(size_t bytes) : size_((bytes + page_size() - 1) / page_size() * page_size()) {
  std::vector<std::byte*>& kept = kept_pages()[size_];
  if (!kept.empty()) {
    begin_ = kept.back();
    kept.pop_back();
    return;
  }
  void* p = mmap(nullptr, size_ + 2 * page_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("mmap");
  begin_ = static_cast<std::byte*>(p) + page_size();
  protect(begin_, size_, PROT_READ | PROT_WRITE);
}

GuardedPages::~GuardedPages() {
  if (begin_ == nullptr) return;
  if (read_only_) protect(begin_, size_, PROT_READ | PROT_WRITE);
  kept_pages()[size_].push_back(begin_);
}

void GuardedPages::make_read_only() {
  if (begin_ == nullptr) return;
  protect(begin_, size_, PROT_READ);
  read_only_ = true;
}

}  // namespace m4j::test
