// Our own declarations of cuBLASLt (ops/cuda/cublaslt.h) against NVIDIA's headers, where these are installed: this file
// compiles, or they differ. Checked are numbers, layouts, and how every argument travels.
#include <cublasLt.h>

#include <cstddef>
#include <type_traits>

#include "ops/cuda/cublaslt.h"

namespace m4j::cuda {
namespace {

// Passed alike: two pointers, or two numbers of one size in the same kind of register.
template <typename Ours, typename Theirs>
constexpr bool kSameArgument =
    std::is_pointer_v<Ours> ? std::is_pointer_v<Theirs>
                            : sizeof(Ours) == sizeof(Theirs) &&
                                  std::is_floating_point_v<Ours> == std::is_floating_point_v<Theirs> &&
                                  (std::is_arithmetic_v<Ours> || std::is_enum_v<Ours>) &&
                                  (std::is_arithmetic_v<Theirs> || std::is_enum_v<Theirs>);

template <typename Ours, typename Theirs>
struct SameFunction : std::false_type {};
template <typename R, typename... Args, typename TheirR, typename... TheirArgs>
  requires(sizeof...(Args) == sizeof...(TheirArgs))
struct SameFunction<R (*)(Args...), TheirR (*)(TheirArgs...)>
    : std::bool_constant<kSameArgument<R, TheirR> && (kSameArgument<Args, TheirArgs> && ...)> {};

#define M4J_SAME_FUNCTION(ours, theirs) \
  static_assert(SameFunction<decltype(CublasLt::ours), decltype(&theirs)>::value, #theirs " has another signature")
M4J_SAME_FUNCTION(create, cublasLtCreate);
M4J_SAME_FUNCTION(destroy, cublasLtDestroy);
M4J_SAME_FUNCTION(desc_create, cublasLtMatmulDescCreate);
M4J_SAME_FUNCTION(desc_destroy, cublasLtMatmulDescDestroy);
M4J_SAME_FUNCTION(desc_set, cublasLtMatmulDescSetAttribute);
M4J_SAME_FUNCTION(layout_create, cublasLtMatrixLayoutCreate);
M4J_SAME_FUNCTION(layout_destroy, cublasLtMatrixLayoutDestroy);
M4J_SAME_FUNCTION(preference_create, cublasLtMatmulPreferenceCreate);
M4J_SAME_FUNCTION(preference_destroy, cublasLtMatmulPreferenceDestroy);
M4J_SAME_FUNCTION(preference_set, cublasLtMatmulPreferenceSetAttribute);
M4J_SAME_FUNCTION(heuristic, cublasLtMatmulAlgoGetHeuristic);
M4J_SAME_FUNCTION(matmul, cublasLtMatmul);

static_assert(std::is_pointer_v<cublasLtHandle_t> && std::is_pointer_v<cublasLtMatmulDesc_t> &&
              std::is_pointer_v<cublasLtMatrixLayout_t> && std::is_pointer_v<cublasLtMatmulPreference_t>);
static_assert(sizeof(cublasStatus_t) == sizeof(CublasLt::Status) && CUBLAS_STATUS_SUCCESS == 0);

static_assert(CUBLAS_COMPUTE_32F == CublasLt::kCompute32F);
static_assert(CUBLAS_OP_T == CublasLt::kOpT && sizeof(cublasOperation_t) == sizeof CublasLt::kOpT);
static_assert(CUBLASLT_MATMUL_DESC_TRANSA == CublasLt::kDescTransA);
static_assert(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES == CublasLt::kPrefMaxWorkspace);
static_assert(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES == CublasLt::kPrefMinAlignments[0]);
static_assert(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES == CublasLt::kPrefMinAlignments[1]);
static_assert(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES == CublasLt::kPrefMinAlignments[2]);
static_assert(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES == CublasLt::kPrefMinAlignments[3]);

using Ours = CublasLt::HeuristicResult;
using Theirs = cublasLtMatmulHeuristicResult_t;
static_assert(sizeof(CublasLt::Algo) == sizeof(cublasLtMatmulAlgo_t) &&
              alignof(CublasLt::Algo) == alignof(cublasLtMatmulAlgo_t));
static_assert(sizeof(Ours) == sizeof(Theirs) && alignof(Ours) == alignof(Theirs));
static_assert(offsetof(Ours, algo) == offsetof(Theirs, algo));
static_assert(offsetof(Ours, workspace_bytes) == offsetof(Theirs, workspaceSize) &&
              sizeof(Ours::workspace_bytes) == sizeof(Theirs::workspaceSize));
static_assert(offsetof(Ours, state) == offsetof(Theirs, state));
static_assert(offsetof(Ours, waves) == offsetof(Theirs, wavesCount));
static_assert(offsetof(Ours, reserved) == offsetof(Theirs, reserved));

}  // namespace
}  // namespace m4j::cuda
