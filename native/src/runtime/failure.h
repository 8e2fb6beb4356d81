// What the library throws inside: a status and the sentence for the caller. src/api turns it into an m4j_error.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "mamba4j.h"

namespace m4j {

struct Failure {
  m4j_status code;
  char message[M4J_ERROR_MESSAGE_SIZE];
};

[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(m4j_status code, const char* format, ...) {
  Failure failure;
  failure.code = code;
  va_list args;
  va_start(args, format);
  std::vsnprintf(failure.message, sizeof failure.message, format, args);
  va_end(args);
  throw failure;
}

}  // namespace m4j
