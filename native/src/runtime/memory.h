// Counted heap memory: everything the library allocates goes through here, so that m4j_native_bytes() is exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace m4j {

// Bytes in use through the functions below.
int64_t counted_bytes();

// 64-byte aligned; throws std::bad_alloc. Free with counted_free(p, bytes).
void* counted_alloc(std::size_t bytes);
void counted_free(void* p, std::size_t bytes) noexcept;

// For standard containers and std::allocate_shared.
template <typename T>
struct CountedAllocator {
  using value_type = T;
  CountedAllocator() = default;
  template <typename U>
  CountedAllocator(const CountedAllocator<U>&) noexcept {}
  T* allocate(std::size_t n) {
    if (n > PTRDIFF_MAX / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(counted_alloc(n * sizeof(T)));
  }
  void deallocate(T* p, std::size_t n) noexcept { counted_free(p, n * sizeof(T)); }
  template <typename U>
  bool operator==(const CountedAllocator<U>&) const noexcept {
    return true;
  }
};

template <typename T>
using Vector = std::vector<T, CountedAllocator<T>>;

// Uninitialised 64-byte aligned floats.
class FloatBuffer {
 public:
  FloatBuffer() = default;
  explicit FloatBuffer(int64_t size) : size_(size) {
    if (size < 0 || size > INT64_MAX / 8) throw std::bad_alloc();
    data_ = static_cast<float*>(counted_alloc(bytes()));
  }
  ~FloatBuffer() { counted_free(data_, bytes()); }
  FloatBuffer(FloatBuffer&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }
  FloatBuffer& operator=(FloatBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  float* data() const { return data_; }
  int64_t size() const { return size_; }
  float& operator[](int64_t i) const { return data_[i]; }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(float); }
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace m4j
