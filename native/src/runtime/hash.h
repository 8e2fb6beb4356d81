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
    if (bytes >= 2 * kLanes * 8) {  // lanes of their own, for a word waits some cycles for the one before
      uint64_t lanes[kLanes];
      for (std::size_t i = 0; i < kLanes; ++i) lanes[i] = mix(state_, i + 1);
      for (; bytes >= kLanes * 8; p += kLanes * 8, bytes -= kLanes * 8) {
        for (std::size_t i = 0; i < kLanes; ++i) lanes[i] = mix(lanes[i], word_at(p + i * 8, 8));
      }
      for (const uint64_t lane : lanes) state_ = mix(state_, lane);
    }
    for (; bytes >= 8; p += 8, bytes -= 8) state_ = mix(state_, word_at(p, 8));
    if (bytes > 0) state_ = mix(state_, word_at(p, bytes) ^ static_cast<uint64_t>(bytes) << 60);
  }
  template <typename T>
  void add(const T& value) {
    add(&value, sizeof value);
  }
  uint64_t value() const { return state_; }

 private:
  static constexpr std::size_t kLanes = 4;

  static uint64_t word_at(const unsigned char* p, std::size_t bytes) {
    uint64_t word = 0;
    std::memcpy(&word, p, bytes);
    return word;
  }
  // An odd factor and a shift by half are both invertible: two inputs that differ in one word never collide.
  static uint64_t mix(uint64_t state, uint64_t word) {
    state = (state ^ word) * 0x9e3779b97f4a7c15u;
    return state ^ state >> 32;
  }
  uint64_t state_ = 0x6d616d6261346a21u;
};

}  // namespace m4j
