// Matrices in memory that betrays wrong accesses: a page that may not be touched lies on either side, inputs are
// read-only, and everything that nobody wrote holds a NaN pattern.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

namespace m4j::test {

enum class Placement {
  kEndsAtGuard,    // the last element touches the guard page behind
  kBeginsAtGuard,  // the first element touches the guard page in front
  kMisaligned,     // one element further: aligned to the element and to nothing more
};

// Where the matrices of a run lie, and how many elements separate their rows.
struct Layout {
  Placement placement;
  int64_t gap;
};
inline constexpr Layout kLayouts[] = {{Placement::kEndsAtGuard, 0},
                                      {Placement::kEndsAtGuard, 3},
                                      {Placement::kBeginsAtGuard, 0},
                                      {Placement::kMisaligned, 1}};

// [rows, cols] with row stride ld = cols + gap; nothing follows the last row. Absent (data() == nullptr) if empty.
template <typename T>
class Guarded {
 public:
  static Guarded input(const std::vector<T>& values, int64_t cols, const Layout& layout) {
    Guarded m = inout(values, cols, layout);
    if (m.pages_ && mprotect(m.pages_ + m.page_, m.inner_, PROT_READ) != 0) throw std::runtime_error("mprotect");
    return m;
  }
  static Guarded inout(const std::vector<T>& values, int64_t cols, const Layout& layout) {
    const int64_t rows = values.empty() ? 0 : static_cast<int64_t>(values.size()) / cols;
    Guarded m(rows, cols, layout);
    for (int64_t r = 0; r < rows; ++r) std::memcpy(m.data_ + r * m.ld_, values.data() + r * cols, m.row_bytes());
    return m;
  }
  static Guarded output(int64_t rows, int64_t cols, const Layout& layout) { return Guarded(rows, cols, layout); }

  Guarded(Guarded&& other) noexcept { swap(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Guarded() {
    if (!pages_) return;
    check();
    munmap(pages_, inner_ + 2 * page_);
  }

  // As if new, for another run: fresh pages cost many times more.
  void poison() {
    if (!pages_) return;
    check();
    std::memset(pages_ + page_, kPoison, inner_);
  }

  T* data() const { return data_; }
  int64_t ld() const { return ld_; }
  std::vector<T> values() const {
    std::vector<T> result(static_cast<size_t>(rows_ * cols_));
    for (int64_t r = 0; r < rows_; ++r) std::memcpy(result.data() + r * cols_, data_ + r * ld_, row_bytes());
    return result;
  }

 private:
  static constexpr unsigned char kPoison = 0xff;  // a NaN in every float format

  Guarded(int64_t rows, int64_t cols, const Layout& layout) : rows_(rows), cols_(cols), ld_(cols + layout.gap) {
    if (rows * cols == 0) return;
    const size_t bytes = static_cast<size_t>((rows - 1) * ld_ + cols) * sizeof(T);
    page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    inner_ = (bytes + sizeof(T) + page_ - 1) / page_ * page_;
    void* p = mmap(nullptr, inner_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("mmap");
    pages_ = static_cast<std::byte*>(p);
    std::byte* begin = pages_ + page_;
    if (mprotect(begin, inner_, PROT_READ | PROT_WRITE) != 0) throw std::runtime_error("mprotect");
    std::memset(begin, kPoison, inner_);
    if (layout.placement == Placement::kEndsAtGuard) begin += inner_ - bytes;
    if (layout.placement == Placement::kMisaligned) begin += sizeof(T);
    data_ = reinterpret_cast<T*>(begin);
  }

  size_t row_bytes() const { return static_cast<size_t>(cols_) * sizeof(T); }

  void check() const {
    EXPECT_TRUE(rest_untouched()) << "written outside the rows of a [" << rows_ << ", " << cols_ << "] matrix";
  }

  bool rest_untouched() const {
    const std::byte* p = pages_ + page_;
    const std::byte* row = reinterpret_cast<const std::byte*>(data_);
    for (int64_t r = 0; r < rows_; ++r, row += static_cast<size_t>(ld_) * sizeof(T)) {
      for (; p < row; ++p) {
        if (*p != std::byte{kPoison}) return false;
      }
      p = row + row_bytes();
    }
    for (; p < pages_ + page_ + inner_; ++p) {
      if (*p != std::byte{kPoison}) return false;
    }
    return true;
  }

  void swap(Guarded& other) noexcept {
    std::swap(pages_, other.pages_);
    std::swap(page_, other.page_);
    std::swap(inner_, other.inner_);
    std::swap(data_, other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    std::swap(ld_, other.ld_);
  }

  std::byte* pages_ = nullptr;  // guard page, inner_ bytes, guard page
  size_t page_ = 0, inner_ = 0;
  T* data_ = nullptr;
  int64_t rows_ = 0, cols_ = 0, ld_ = 0;
};

}  // namespace m4j::test
