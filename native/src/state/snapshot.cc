#include "state/snapshot.h"

#include <bit>
#include <cstring>

#include "runtime/checked.h"
#include "runtime/failure.h"
#include "runtime/hash.h"

namespace m4j {
namespace {

static_assert(std::endian::native == std::endian::little, "snapshots are little-endian");

constexpr char kMagic[4] = {'M', '4', 'J', 'S'};
constexpr uint32_t kVersion = 2;
constexpr int64_t kMaxPosition = int64_t{1} << 62;  // so that tokens can still be added to it

struct Header {
  char magic[4];
  uint32_t version;
  uint64_t fingerprint;
  int64_t position;
  int64_t conv_floats;
  int64_t ssm_floats;
  uint64_t checksum;  // of the whole snapshot with this field 0
};
static_assert(sizeof(Header) == 48);

uint64_t checksum_of(Header header, const unsigned char* payload, std::size_t bytes) {
  header.checksum = 0;
  Hash hash;
  hash.add(header);
  hash.add(payload, bytes);
  return hash.value();
}

// [rows, columns] -> [columns, rows]; either side may be unaligned.
void transpose(const void* from, void* to, int64_t rows, int64_t columns) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      std::memcpy(target + (c * rows + r) * 4, source + (r * columns + c) * 4, 4);
    }
  }
}

// Every layer of a state between its layout here, [rows, columns], and the documented [columns, rows].
void transpose_layers(const void* from, void* to, int64_t n_layer, int64_t rows, int64_t columns) {
  for (int64_t l = 0; l < n_layer; ++l) {
    const int64_t offset = l * rows * columns * 4;
    transpose(static_cast<const char*>(from) + offset, static_cast<char*>(to) + offset, rows, columns);
  }
}

}  // namespace

int64_t snapshot_size(const Config& config) {
  return static_cast<int64_t>(sizeof(Header)) + (config.conv_state() + config.ssm_state()) * 4;
}

void read_conv(const Config& c, const SlotView& slot, void* conv) {
  transpose_layers(slot.conv, conv, c.n_layer, c.d_conv - 1, c.conv_channels());
}

void read_ssm(const Config& c, const SlotView& slot, void* ssm) {
  if (c.is_mamba2()) {
    std::memcpy(ssm, slot.ssm, static_cast<std::size_t>(c.ssm_state()) * 4);
  } else {
    transpose_layers(slot.ssm, ssm, c.n_layer, c.d_state, c.d_inner);
  }
}

void export_snapshot(const Model& model, const SlotView& slot, int64_t position, void* buffer) {
  const Config& c = model.config;
  Header header = {.magic = {},
                   .version = kVersion,
                   .fingerprint = model.fingerprint,
                   .position = position,
                   .conv_floats = c.conv_state(),
                   .ssm_floats = c.ssm_state(),
                   .checksum = 0};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  unsigned char* payload = static_cast<unsigned char*>(buffer) + sizeof header;
  read_conv(c, slot, payload);
  read_ssm(c, slot, payload + c.conv_state() * 4);
  header.checksum = checksum_of(header, payload, static_cast<std::size_t>(c.conv_state() + c.ssm_state()) * 4);
  std::memcpy(buffer, &header, sizeof header);
}

int64_t import_snapshot(const Model& model, const SlotView& slot, const void* buffer, int64_t size) {
  const Config& c = model.config;
  Header header;
  if (size < static_cast<int64_t>(sizeof header)) {
    fail(M4J_ERR_MISMATCH, "snapshot of %lld bytes: shorter than its header of %zu", static_cast<long long>(size),
         sizeof header);
  }
  std::memcpy(&header, buffer, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    fail(M4J_ERR_MISMATCH, "snapshot: does not begin with \"M4JS\"");
  }
  if (header.version != kVersion) {
    fail(M4J_ERR_MISMATCH, "snapshot: format version %u, this library reads %u", header.version, kVersion);
  }
  if (header.fingerprint != model.fingerprint) {
    fail(M4J_ERR_MISMATCH, "snapshot: of the model with fingerprint %016llx, this model has %016llx",
         static_cast<unsigned long long>(header.fingerprint), static_cast<unsigned long long>(model.fingerprint));
  }
  if (header.conv_floats != c.conv_state() || header.ssm_floats != c.ssm_state() || size != snapshot_size(c)) {
    fail(M4J_ERR_MISMATCH, "snapshot: %lld bytes for %lld + %lld floats, expected %lld bytes for %lld + %lld",
         static_cast<long long>(size), static_cast<long long>(header.conv_floats),
         static_cast<long long>(header.ssm_floats), static_cast<long long>(snapshot_size(c)),
         static_cast<long long>(c.conv_state()), static_cast<long long>(c.ssm_state()));
  }
  const unsigned char* payload = static_cast<const unsigned char*>(buffer) + sizeof header;
  const std::size_t payload_bytes = static_cast<std::size_t>(size) - sizeof header;
  if (header.position < 0 || header.position > kMaxPosition ||
      checksum_of(header, payload, payload_bytes) != header.checksum) {
    fail(M4J_ERR_MISMATCH, "snapshot: damaged, its checksum does not fit its content");
  }
  transpose_layers(payload, slot.conv, c.n_layer, c.conv_channels(), c.d_conv - 1);
  const unsigned char* ssm = payload + c.conv_state() * 4;
  if (c.is_mamba2()) {
    std::memcpy(slot.ssm, ssm, static_cast<std::size_t>(c.ssm_state()) * 4);
  } else {
    transpose_layers(ssm, slot.ssm, c.n_layer, c.d_inner, c.d_state);
  }
  return header.position;
}

}  // namespace m4j
