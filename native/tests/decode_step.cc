// Decodes a few tokens with a small random model, for counting instructions under callgrind (tests/scripts).
#include <cstdio>
#include <exception>

#include "random_model.h"

int main(int argc, char** argv) {
  using namespace m4j::bench;
  const Shape* shape = argc == 2 ? find_shape(argv[1]) : nullptr;
  if (shape == nullptr) {
    std::fprintf(stderr, "usage: decode_step SHAPE, such as mamba-tiny or mamba2-tiny\n");
    return 2;
  }
  try {
    RandomModel model(*shape, M4J_F32, 1);
    const m4j_slot slot = model.take();
    for (int32_t token : {1, 2, 3, 4}) model.advance({slot}, {token});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "decode_step: %s\n", e.what());
    return 1;
  }
  return 0;
}
