#include "support/safetensors.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <stdexcept>

namespace m4j::test {

std::map<std::string, GoldenTensor> read_golden(const std::string& file_name) {
  const std::string path = M4J_GOLDENS_DIR "/" + file_name;
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  uint64_t header_size;
  if (bytes.size() < sizeof(header_size)) throw std::runtime_error("no golden " + path);
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const std::string header = bytes.substr(sizeof(header_size), header_size);
  const std::string data = bytes.substr(sizeof(header_size) + header_size);

  static const std::regex kEntry(
      R"re("(\w+)":\{"dtype":"F32","shape":\[([0-9,]*)\],"data_offsets":\[([0-9]+),([0-9]+)\]\})re");
  std::map<std::string, GoldenTensor> tensors;
  size_t covered = 0;
  for (std::sregex_iterator m(header.begin(), header.end(), kEntry), end; m != end; ++m) {
    GoldenTensor& tensor = tensors[(*m)[1]];
    size_t count = 1;
    std::istringstream dims((*m)[2]);
    for (std::string dim; std::getline(dims, dim, ',');) {
      tensor.shape.push_back(std::stoll(dim));
      count *= std::stoull(dim);
    }
    const size_t from = std::stoull((*m)[3]), to = std::stoull((*m)[4]);
    if (to > data.size() || to - from != count * sizeof(float)) throw std::runtime_error("damaged golden " + path);
    tensor.values.resize(count);
    std::memcpy(tensor.values.data(), data.data() + from, to - from);
    covered += to - from;
  }
  if (covered != data.size()) throw std::runtime_error("tensors other than float32 in golden " + path);
  return tensors;
}

}  // namespace m4j::test
