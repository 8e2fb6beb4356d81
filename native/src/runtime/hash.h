// A 64-bit hash over bytes for fingerprints and checksums: finds accidents, not attacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace m4j {

class Hash {
 public:
  void add(const void* data, std::size_t bytes) {
    const unsigned char* p = static_cast<const unsigned char*>(data);
    for (; bytes >= 8; p += 8, bytes -= 8) add_word(p, 8);
    if (bytes > 0) add_word(p, bytes);
  }
  template <typename T>
  void add(const T& value) {
    add(&value, sizeof value);
  }
  uint64_t value() const { return state_; }

 private:
  void add_word(const unsigned char* p, std::size_t bytes) {
    uint64_t word = 0;
    std::memcpy(&word, p, bytes);
    // An odd factor and a shift by half are both invertible: two inputs that differ in one word never collide.
    state_ = (state_ ^ word ^ (static_cast<uint64_t>(bytes) << 60)) * 0x9e3779b97f4a7c15u;
    state_ ^= state_ >> 32;
  }
  uint64_t state_ = 0x6d616d6261346a21u;
};

}  // namespace m4j
