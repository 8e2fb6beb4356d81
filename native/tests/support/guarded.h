// Matrices in memory that betrays wrong accesses: a page that may not be touched lies on either side, inputs are
// read-only, and everything that nobody wrote holds a NaN pattern.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
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

// Whole pages of at least so many bytes, between two that may not be touched. They are kept for the next matrix of their
// size: fresh ones cost many times more than what the tests do with them.
class GuardedPages {
 public:
  GuardedPages() = default;
  explicit GuardedPages(size_t bytes);
  GuardedPages(GuardedPages&& other) noexcept { swap(other); }
  GuardedPages& operator=(GuardedPages&& other) noexcept {
    swap(other);
    return *this;
  }
  ~GuardedPages();

  void make_read_only();
  std::byte* begin() const { return begin_; }  // nullptr: none
  std::byte* end() const { return begin_ + size_; }

 private:
  void swap(GuardedPages& other) noexcept {
    std::swap(begin_, other.begin_);
    std::swap(size_, other.size_);
    std::swap(read_only_, other.read_only_);
  }

  std::byte* begin_ = nullptr;
  size_t size_ = 0;
  bool read_only_ = false;
};

// [rows, cols] with row stride ld = cols + gap; nothing follows the last row. Absent (data() == nullptr) if empty.
template <typename T>
class Guarded {
 public:
  static Guarded input(const std::vector<T>& values, int64_t cols, const Layout& layout) {
    Guarded m = inout(values, cols, layout);
    m.pages_.make_read_only();
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
    if (!data_) return;
    EXPECT_TRUE(rest_untouched()) << "written outside the rows of a [" << rows_ << ", " << cols_ << "] matrix";
  }

  T* data() const { return data_; }
  int64_t ld() const { return ld_; }
  std::vector<T> values() const {
    std::vector<T> result(static_cast<size_t>(rows_ * cols_));
    for (int64_t r = 0; r < rows_; ++r) std::memcpy(result.data() + r * cols_, data_ + r * ld_, row_bytes());
    return result;
  }

 private:
  static constexpr std::byte kPoison{0xff};  // a NaN in every float format

  Guarded(int64_t rows, int64_t cols, const Layout& layout) : rows_(rows), cols_(cols), ld_(cols + layout.gap) {
    if (rows * cols == 0) return;
    const size_t bytes = static_cast<size_t>((rows - 1) * ld_ + cols) * sizeof(T);
    pages_ = GuardedPages(bytes + sizeof(T));
    std::fill(pages_.begin(), pages_.end(), kPoison);
    std::byte* begin = pages_.begin();
    if (layout.placement == Placement::kEndsAtGuard) begin = pages_.end() - bytes;
    if (layout.placement == Placement::kMisaligned) begin += sizeof(T);
    data_ = reinterpret_cast<T*>(begin);
  }

  size_t row_bytes() const { return static_cast<size_t>(cols_) * sizeof(T); }

  bool rest_untouched() const {
    const std::byte* p = pages_.begin();
    const std::byte* row = reinterpret_cast<const std::byte*>(data_);
    for (int64_t r = 0; r < rows_; ++r, row += static_cast<size_t>(ld_) * sizeof(T)) {
      for (; p < row; ++p) {
        if (*p != kPoison) return false;
      }
      p = row + row_bytes();
    }
    for (; p < pages_.end(); ++p) {
      if (*p != kPoison) return false;
    }
    return true;
  }

  void swap(Guarded& other) noexcept {
    std::swap(pages_, other.pages_);
    std::swap(data_, other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    std::swap(ld_, other.ld_);
  }

  GuardedPages pages_;
  T* data_ = nullptr;
  int64_t rows_ = 0, cols_ = 0, ld_ = 0;
};

}  // namespace m4j::test
