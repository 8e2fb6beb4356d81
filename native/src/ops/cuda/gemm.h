// out = x weight^T by cuBLASLt, for more tokens than the mat-vec kernels serve. One object a stream: it keeps the
// algorithms chosen for the shapes seen so far.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <tuple>

#include "ops/cuda/cublaslt.h"
#include "ops/ops.h"

namespace m4j::cuda {

class Gemm {
 public:
  static constexpr int64_t kWorkspaceBytes = 32 << 20;

  Gemm();  // throws Failure without cuBLASLt
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // x [T, in] and weight [out, in] of one dtype (F32, F16 or BF16), out [T, out] of out_dtype.
  struct Args {
    DType dtype;
    const void* x;
    int64_t ld_x;
    const void* weight;
    int64_t tokens, in, out_dim;
    DType out_dtype;
    void* out;
    int64_t ld_out;
    void* workspace;  // kWorkspaceBytes
  };
  void run(const Args&, cudaStream_t stream);

 private:
  struct Plan {
    CublasLt::MatmulDesc desc = nullptr;
    CublasLt::MatrixLayout weight = nullptr, x = nullptr, out = nullptr;
    CublasLt::Algo algo{};
  };
  using Key = std::tuple<DType, DType, int64_t, int64_t, int64_t, int64_t, int64_t>;
  const Plan& plan(const Args&);
  Plan make_plan(const Args&);
  void destroy(const Plan&);

  const CublasLt& lt_;
  CublasLt::Handle handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

}  // namespace m4j::cuda
