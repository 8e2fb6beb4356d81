// Pools of states larger than 32-bit offsets reach: the last slots compute what the first ones do.
#include <gtest/gtest.h>

#include "support/api_test.h"

namespace m4j::test {
namespace {

class CudaStates : public ApiTest {};

TEST_F(CudaStates, OffsetsBeyond32Bits) {
  const EnginePtr gpu = make_gpu_engine();
  for (const int32_t family : {M4J_MAMBA1, M4J_MAMBA2}) {
    SCOPED_TRACE(family == M4J_MAMBA1 ? "Mamba-1" : "Mamba-2");
    // As in published models, so that steps of few sequences take the resident kernel.
    const int64_t d_state = family == M4J_MAMBA1 ? 16 : 128;
    TinyModel tiny({.family = family, .dtype = DType::kBF16, .d_inner = 768, .d_state = d_state, .even = true},
                   run_seed());
    const ModelPtr model = make_model(gpu, tiny);
    const StatesPtr few = make_states(model), many = make_states(model);
    constexpr int64_t kSequences = 6;
    std::vector<m4j_slot> first, last;
    for (int64_t i = 0; i < kSequences; ++i) first.push_back(take(few));
    for (int64_t floats = 0; floats <= int64_t{1} << 31; floats += tiny.conv_size() + tiny.ssm_size()) take(many);
    for (int64_t i = 0; i < kSequences; ++i) last.push_back(take(many));
    const int64_t V = tiny.config.vocab_size;
    for (const std::vector<int64_t>& lengths :
         {std::vector<int64_t>{70, 3, 9, 1, 300, 2}, {1, 1, 1, 1, 1, 1}, {1, 1, 1}, {1}, {2, 1, 5}}) {
      std::vector<Tokens> input;
      for (const int64_t n : lengths) input.push_back(random.ids(n, static_cast<int32_t>(V)));
      const auto some = [&](const std::vector<m4j_slot>& slots) {
        return std::vector<m4j_slot>(slots.begin(), slots.begin() + static_cast<std::ptrdiff_t>(lengths.size()));
      };
      EXPECT_EQ(advance(many, some(last), input, V), advance(few, some(first), input, V));
    }
    for (size_t i = 0; i < kSequences; ++i) {
      EXPECT_EQ(read_state(many, last[i], tiny), read_state(few, first[i], tiny));
    }
    EXPECT_EQ(m4j_slot_copy(many.get(), last[0], last[1], &err), M4J_OK) << err.message;
    EXPECT_EQ(read_state(many, last[0], tiny), read_state(few, first[1], tiny));
  }
}

}  // namespace
}  // namespace m4j::test
