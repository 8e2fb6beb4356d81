#include "support/safetensors.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

namespace m4j::test {
namespace {

std::vector<int64_t> numbers(const std::string& comma_separated) {
  std::vector<int64_t> result;
  std::istringstream in(comma_separated);
  for (std::string number; std::getline(in, number, ',');) result.push_back(std::stoll(number));
  return result;
}

}  // namespace

std::map<std::string, GoldenTensor> read_golden(const std::string& file_name) {
  const std::string path = M4J_GOLDENS_DIR "/" + file_name;
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  uint64_t header_size;
  if (bytes.size() < sizeof(header_size)) throw std::runtime_error("no golden " + path);
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const std::string header = bytes.substr(sizeof(header_size), header_size);
  const std::string data = bytes.substr(sizeof(header_size) + header_size);

  // Our goldens spell every entry "NAME":{"dtype":"F32","shape":[...],"data_offsets":[FROM,TO]}.
  static const std::string kShape = "\":{\"dtype\":\"F32\",\"shape\":[", kOffsets = "],\"data_offsets\":[";
  std::map<std::string, GoldenTensor> tensors;
  size_t covered = 0;
  for (size_t at = header.find(kShape); at != std::string::npos; at = header.find(kShape, at + 1)) {
    const size_t name_begin = header.rfind('"', at - 1) + 1;
    const size_t shape_begin = at + kShape.size(), shape_end = header.find(kOffsets, at);
    const size_t offsets_begin = shape_end + kOffsets.size(), offsets_end = header.find(']', offsets_begin);
    GoldenTensor& tensor = tensors[header.substr(name_begin, at - name_begin)];
    tensor.shape = numbers(header.substr(shape_begin, shape_end - shape_begin));
    const std::vector<int64_t> offsets = numbers(header.substr(offsets_begin, offsets_end - offsets_begin));
    const size_t from = static_cast<size_t>(offsets.at(0)), to = static_cast<size_t>(offsets.at(1));
    size_t count = 1;
    for (int64_t dim : tensor.shape) count *= static_cast<size_t>(dim);
    if (to > data.size() || to - from != count * sizeof(float)) throw std::runtime_error("damaged golden " + path);
    tensor.values.resize(count);
    std::memcpy(tensor.values.data(), data.data() + from, to - from);
    covered += to - from;
  }
  if (covered != data.size()) throw std::runtime_error("tensors other than float32 in golden " + path);
  return tensors;
}

}  // namespace m4j::test
