#include "runtime/engine.h"

#include <cstdarg>
#include <cstdio>

namespace m4j {

void Engine::log(int32_t level, const char* format, ...) const {
  if (log_.function == nullptr) return;
  char message[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(message, sizeof message, format, args);
  va_end(args);
  log_.function(log_.user, level, message);
}

void Engine::Turn::reserve(int64_t shared, int64_t scratch) {
  shared = align_floats(shared);
  scratch_stride_ = align_floats(scratch);
  const int64_t needed = checked_add(shared, checked_mul(scratch_stride_, engine_.threads()));
  if (needed > engine_.workspace_.size()) {
    engine_.workspace_ = FloatBuffer();  // first, so that old and new are not held at once
    engine_.workspace_ = FloatBuffer(needed);
    engine_.log(M4J_LOG_DEBUG, "workspace of %lld bytes", static_cast<long long>(needed * 4));
  }
  scratch_ = engine_.workspace_.data() + shared;
}

}  // namespace m4j
