// The self-test finds a kernel that does not give the reference's results: here the reference is wrong instead.
#include "cuda/self_test.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "runtime/failure.h"

namespace m4j::cuda::test {
namespace {

// Has the operation's result changed before it is handed out.
template <auto kOp, auto kChange>
void spoil(Ops& ops) {
  ops.*kOp = [](const auto& args, const Share& share) {
    (reference_ops().*kOp)(args, share);
    kChange(args);
  };
}

struct Wrong {
  const char* family;
  void (*spoil)(Ops&);
};

TEST(CudaSelfTest, RefusesWrongResults) {
  Engine engine(0);
  expect_known_answers(engine, reference_ops());
  const Wrong all[] = {
      {"rms_norm", spoil<&Ops::rms_norm, [](const m4j::RmsNormArgs& a) { a.out[0] += 1000; }>},
      {"linear, one token", spoil<&Ops::linear, [](const m4j::LinearArgs& a) { a.out[0] += 1000; }>},
      {"selective_scan", spoil<&Ops::selective_scan, [](const m4j::SelectiveScanArgs& a) { a.state[0] += 1000; }>},
      {"softmax", spoil<&Ops::softmax, [](const m4j::SoftmaxArgs& a) { a.out[0] = NAN; }>},
      {"sample", spoil<&Ops::sample, [](const SampleArgs& a) { ++a.results[0].token; }>},
  };
  for (const Wrong& wrong : all) {
    Ops ops = reference_ops();
    wrong.spoil(ops);
    try {
      expect_known_answers(engine, ops);
      ADD_FAILURE() << wrong.family << " was not found out";
    } catch (const Failure& e) {
      EXPECT_EQ(e.code, M4J_ERR_UNSUPPORTED);
      EXPECT_NE(std::string(e.message).find(std::string("cuda:0 fails the self-test of ") + wrong.family), std::string::npos)
          << e.message;
    }
  }
  expect_known_answers(engine, reference_ops());
}

}  // namespace
}  // namespace m4j::cuda::test
