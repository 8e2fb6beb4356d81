#include "cuda/slot_memory.h"

#include <algorithm>

#include "cuda/driver.h"
#include "ops/cuda/check.h"

namespace m4j::cuda {
namespace {

void must(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  if (result == CUDA_ERROR_OUT_OF_MEMORY) fail(M4J_ERR_OUT_OF_MEMORY, "%s: out of GPU memory", what);
  fail(M4J_ERR_INTERNAL, "%s: driver error %d", what, static_cast<int>(result));
}

CUmemAllocationProp allocation(int device) {
  CUmemAllocationProp p{};
  p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  p.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  return p;
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

}  // namespace

SlotMemory::SlotMemory(int64_t slot_bytes, int64_t max_slots, int64_t* count) : slot_bytes_(slot_bytes), count_(count) {
  const Driver& driver = Driver::instance();
  const CUmemAllocationProp properties = allocation(current_device());
  std::size_t granularity = 0;
  must(driver.granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "memory granularity");
  granularity_ = static_cast<int64_t>(granularity);
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  int64_t wanted = static_cast<int64_t>(total);
  if (max_slots > 0 && max_slots < wanted / slot_bytes) wanted = max_slots * slot_bytes;
  reserved_ = (wanted + granularity_ - 1) / granularity_ * granularity_;
  must(driver.reserve(&base_, static_cast<std::size_t>(reserved_), 0, 0, 0), "address space of the states");
}

SlotMemory::~SlotMemory() {
  const Driver& driver = Driver::instance();
  if (mapped_ > 0) driver.unmap(base_, static_cast<std::size_t>(mapped_));
  for (CUmemGenericAllocationHandle chunk : chunks_) driver.release(chunk);
  driver.free_address(base_, static_cast<std::size_t>(reserved_));
  *count_ -= mapped_;
}

void SlotMemory::reserve(int64_t slots) {
  const int64_t needed = slots * slot_bytes_;
  if (needed <= mapped_) return;
  if (needed > reserved_) {
    fail(M4J_ERR_OUT_OF_MEMORY, "states: %lld slots of %.1f MB are more than the card's memory",
         static_cast<long long>(slots), static_cast<double>(slot_bytes_) / 1e6);
  }
  const Driver& driver = Driver::instance();
  const CUmemAllocationProp properties = allocation(current_device());
  // Some slots at a time, since a mapping costs much more than a slot of a small model.
  constexpr int64_t kStep = 64 << 20;
  const auto whole = [&](int64_t n) {
    return std::min((n + granularity_ - 1) / granularity_ * granularity_, reserved_ - mapped_);
  };
  const int64_t least = whole(needed - mapped_);
  int64_t bytes = std::max(least, whole(std::min(kStep, mapped_)));
  chunks_.reserve(chunks_.size() + 1);
  CUmemGenericAllocationHandle chunk;
  CUresult created = driver.create(&chunk, static_cast<std::size_t>(bytes), &properties, 0);
  if (created == CUDA_ERROR_OUT_OF_MEMORY && bytes > least) {
    bytes = least;
    created = driver.create(&chunk, static_cast<std::size_t>(bytes), &properties, 0);
  }
  if (created == CUDA_ERROR_OUT_OF_MEMORY) {
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail(M4J_ERR_OUT_OF_MEMORY, "states: %.1f MB of GPU memory for slot %lld were asked for, %.1f of %.1f MB are free",
         static_cast<double>(bytes) / 1e6, static_cast<long long>(slots - 1), static_cast<double>(free) / 1e6,
         static_cast<double>(total) / 1e6);
  }
  must(created, "memory of the states");
  const CUmemAccessDesc access = {properties.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  const CUdeviceptr address = base_ + static_cast<CUdeviceptr>(mapped_);
  CUresult mapped = driver.map(address, static_cast<std::size_t>(bytes), 0, chunk, 0);
  if (mapped == CUDA_SUCCESS) {
    mapped = driver.set_access(address, static_cast<std::size_t>(bytes), &access, 1);
    if (mapped != CUDA_SUCCESS) driver.unmap(address, static_cast<std::size_t>(bytes));
  }
  if (mapped != CUDA_SUCCESS) driver.release(chunk);
  must(mapped, "mapping of the states");
  chunks_.push_back(chunk);
  mapped_ += bytes;
  *count_ += bytes;
}

}  // namespace m4j::cuda
