#include "runtime/buffer.h"

#include <cstring>

namespace m4j {

Buffer::Buffer(std::shared_ptr<Engine> engine, int64_t bytes) : engine_(std::move(engine)), bytes_(bytes) {
  if (bytes == 0) return;
  if (engine_->gpu != nullptr) {
    const Engine::Turn turn(*engine_);
    CudaDevice::call(engine_->gpu->api.buffer_create, engine_->gpu->engine, bytes, &data_);
    return;
  }
  try {
    data_ = counted_alloc(static_cast<std::size_t>(bytes));
  } catch (const std::bad_alloc&) {
    fail(M4J_ERR_OUT_OF_MEMORY, "buffer: %.1f MB of memory were asked for, the system refused them",
         static_cast<double>(bytes) / 1e6);
  }
  std::memset(data_, 0, static_cast<std::size_t>(bytes));
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (engine_->gpu == nullptr) {
    counted_free(data_, static_cast<std::size_t>(bytes_));
    return;
  }
  const Engine::Turn turn(*engine_);
  engine_->gpu->api.buffer_release(engine_->gpu->engine, data_, bytes_);
}

}  // namespace m4j
