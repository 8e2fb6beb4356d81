// Memory of an engine's device with an owner: host memory, or that of its GPU.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/engine.h"

namespace m4j {

class Buffer {
 public:
  // Zeroed. Throws Failure (M4J_ERR_OUT_OF_MEMORY) that names the sizes.
  Buffer(std::shared_ptr<Engine> engine, int64_t bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }  // null if there are no bytes

 private:
  const std::shared_ptr<Engine> engine_;
  const int64_t bytes_;
  void* data_ = nullptr;
};

}  // namespace m4j
