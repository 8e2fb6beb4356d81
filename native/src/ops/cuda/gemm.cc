#include "ops/cuda/gemm.h"

#include "runtime/failure.h"

namespace m4j::cuda {
namespace {

// A batch of any size is a shape of its own; a service that has met this many starts over.
constexpr std::size_t kMaxPlans = 4096;

constexpr uint32_t kAlignment = 16;  // bytes, of all operands

cudaDataType_t cuda_type(DType t) { return t == DType::kF32 ? CUDA_R_32F : t == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF; }

void must(CublasLt::Status status, const char* what) {
  if (status != 0) fail(M4J_ERR_INTERNAL, "%s: cuBLASLt status %d", what, status);
}

}  // namespace

Gemm::Gemm() : lt_(CublasLt::instance()) { must(lt_.create(&handle_), "cublasLtCreate"); }

Gemm::~Gemm() {
  for (const auto& [key, plan] : plans_) destroy(plan);
  lt_.destroy(handle_);
}

void Gemm::destroy(const Plan& plan) {
  if (plan.desc != nullptr) lt_.desc_destroy(plan.desc);
  for (CublasLt::MatrixLayout layout : {plan.weight, plan.x, plan.out}) {
    if (layout != nullptr) lt_.layout_destroy(layout);
  }
}

// cuBLAS is column-major: row-major out [T, out] is its out x T matrix, weight^T times x.
Gemm::Plan Gemm::make_plan(const Args& a) {
  Plan plan;
  CublasLt::Preference preference = nullptr;
  CublasLt::HeuristicResult result;
  int found = 0;
  const std::size_t workspace = kWorkspaceBytes;
  try {
    must(lt_.desc_create(&plan.desc, CublasLt::kCompute32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    must(lt_.desc_set(plan.desc, CublasLt::kDescTransA, &CublasLt::kOpT, sizeof CublasLt::kOpT), "TRANSA");
    const auto layout = [&](CublasLt::MatrixLayout* out, DType dtype, int64_t rows, int64_t cols, int64_t ld) {
      must(lt_.layout_create(out, cuda_type(dtype), static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), ld),
           "cublasLtMatrixLayoutCreate");
    };
    layout(&plan.weight, a.dtype, a.in, a.out_dim, a.in);
    layout(&plan.x, a.dtype, a.in, a.tokens, a.ld_x);
    layout(&plan.out, a.out_dtype, a.out_dim, a.tokens, a.ld_out);
    must(lt_.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
    must(lt_.preference_set(preference, CublasLt::kPrefMaxWorkspace, &workspace, sizeof workspace), "MAX_WORKSPACE");
    for (int attribute : CublasLt::kPrefMinAlignments) {
      must(lt_.preference_set(preference, attribute, &kAlignment, sizeof kAlignment), "MIN_ALIGNMENT");
    }
    must(lt_.heuristic(handle_, plan.desc, plan.weight, plan.x, plan.out, plan.out, preference, 1, &result, &found),
         "cublasLtMatmulAlgoGetHeuristic");
    if (found == 0) {
      fail(M4J_ERR_UNSUPPORTED, "cuBLASLt has no algorithm for a product of %lld tokens, %lld to %lld",
           static_cast<long long>(a.tokens), static_cast<long long>(a.in), static_cast<long long>(a.out_dim));
    }
  } catch (...) {
    if (preference != nullptr) lt_.preference_destroy(preference);
    destroy(plan);
    throw;
  }
  lt_.preference_destroy(preference);
  plan.algo = result.algo;
  return plan;
}

const Gemm::Plan& Gemm::plan(const Args& a) {
  const Key key{a.dtype, a.out_dtype, a.tokens, a.in, a.out_dim, a.ld_x, a.ld_out};
  const auto known = plans_.find(key);
  if (known != plans_.end()) return known->second;
  if (plans_.size() == kMaxPlans) {
    for (const auto& [old, plan] : plans_) destroy(plan);
    plans_.clear();
  }
  return plans_.emplace(key, make_plan(a)).first->second;
}

void Gemm::run(const Args& a, cudaStream_t stream) {
  const Plan& p = plan(a);
  const float one = 1, zero = 0;
  must(lt_.matmul(handle_, p.desc, &one, a.weight, p.weight, a.x, p.x, &zero, a.out, p.out, a.out, p.out, &p.algo,
                  a.workspace, kWorkspaceBytes, stream),
       "cublasLtMatmul");
}

}  // namespace m4j::cuda
