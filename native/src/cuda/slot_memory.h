// GPU memory that grows in place: address space is reserved once and memory mapped into it on demand, so that addresses
// stay valid, those in captured graphs too.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <vector>

namespace m4j::cuda {

class SlotMemory {
 public:
  // For up to max_slots (0: any number) of slot_bytes each, but never more than the card's memory could hold.
  SlotMemory(int64_t slot_bytes, int64_t max_slots, int64_t* count);
  ~SlotMemory();
  SlotMemory(const SlotMemory&) = delete;
  SlotMemory& operator=(const SlotMemory&) = delete;

  // Slots 0 ... slots - 1 have memory from now on.
  void reserve(int64_t slots);
  char* data() const { return reinterpret_cast<char*>(base_); }

 private:
  const int64_t slot_bytes_;
  int64_t* const count_;  // bytes mapped are added to it
  CUdeviceptr base_ = 0;
  int64_t reserved_ = 0, mapped_ = 0, granularity_ = 0;  // bytes
  std::vector<CUmemGenericAllocationHandle> chunks_;
};

}  // namespace m4j::cuda
