#include "api/error.h"

#include <cstring>

namespace m4j {
namespace {

// Length without a UTF-8 character that lost its end when the message was cut.
std::size_t whole_characters(const char* text, std::size_t length) {
  std::size_t lead = length;
  while (lead > 0 && (static_cast<unsigned char>(text[lead - 1]) & 0xc0) == 0x80) --lead;
  if (lead == 0) return length;
  const unsigned char byte = static_cast<unsigned char>(text[lead - 1]);
  const std::size_t size = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
  return length - (lead - 1) < size ? lead - 1 : length;
}

}  // namespace

m4j_status report(m4j_error* err, m4j_status code, const char* message) noexcept {
  if (err == nullptr) return code;
  const std::size_t length = whole_characters(message, strnlen(message, sizeof err->message - 1));
  err->code = code;
  err->reserved = 0;
  std::memcpy(err->message, message, length);
  err->message[length] = '\0';
  return code;
}

}  // namespace m4j
