#include "api/error.h"

#include <cstring>

namespace m4j {

m4j_status report(m4j_error* err, m4j_status code, const char* message) noexcept {
  if (err == nullptr) return code;
  err->code = code;
  err->reserved = 0;
  std::size_t length = strnlen(message, sizeof err->message - 1);
  if (message[length] != '\0') {  // cut: not inside a UTF-8 character
    while (length > 0 && (static_cast<unsigned char>(message[length]) & 0xc0) == 0x80) --length;
  }
  std::memcpy(err->message, message, length);
  err->message[length] = '\0';
  return code;
}

}  // namespace m4j
