// The chunked SSD of "Transformers are SSMs", section 6: products inside a chunk, a recurrence between chunks.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/ssd_chunk.cuh"
#include "ops/cuda/ssd_chunk_half.cuh"
#include "ops/cuda/ssd_chunk_single.cuh"

namespace m4j::cuda {
namespace {

using ssd::Pass;
using ssd::Plan;

constexpr int64_t kMaxParts = 64;            // whose states a block folds before it starts
constexpr int64_t kMinSpan = 2 * ssd::kChunk;  // below, a second launch costs more than it saves

int64_t padded_state(int64_t d_state) { return d_state <= 64 ? 64 : d_state <= 128 ? 128 : 256; }

int64_t multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}

// Parts for which all blocks run at once, if sequences and heads alone are too few for that.
Plan make_plan(int64_t heads, int64_t headdim, int64_t d_state, int64_t n_groups, const Segments& s) {
  Plan plan = {};
  plan.slabs = ceil_div(headdim, ssd::kSlab);
  plan.blocks = n_groups * ceil_div(heads / n_groups * plan.slabs, ssd::kSlabsPerBlock);
  const int64_t resident = multiprocessors() * (d_state <= 128 ? 2 : 1);
  const int64_t parts = std::clamp<int64_t>(resident * s.longest / (plan.blocks * s.tokens), 1, kMaxParts);
  plan.span = ceil_div(std::max(ceil_div(s.longest, parts), kMinSpan), ssd::kChunk) * ssd::kChunk;
  plan.parts = ceil_div(s.longest, plan.span);
  return plan;
}

int64_t state_floats(const Plan& plan, int64_t heads, int64_t d_state, int64_t tokens) {
  return (2 * tokens / plan.span + 1) * heads * plan.slabs * ssd::kSlab * padded_state(d_state);
}

template <typename Shared>
void launch(void (*kernel)(SsdArgs, Plan), const SsdArgs& a, const Plan& plan, cudaStream_t stream) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared))),
        "cudaFuncSetAttribute");
  const int64_t blocks = a.segments.count * plan.parts * plan.blocks;
  kernel<<<static_cast<unsigned>(blocks), ssd::kThreads, sizeof(Shared), stream>>>(a, plan);
  check_launch("ssd_chunk");
}

template <typename T, int kN, Pass kPass>
void launch_pass(const SsdArgs& a, const Plan& plan, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, float>) {
    launch<ssd::SingleShared<kN, kPass>>(ssd::ssd_single_kernel<kN, kPass>, a, plan, stream);
  } else if (plan.vectors) {
    launch<ssd::HalfShared<kN, kPass>>(ssd::ssd_half_kernel<T, kN, kPass, true>, a, plan, stream);
  } else {
    launch<ssd::HalfShared<kN, kPass>>(ssd::ssd_half_kernel<T, kN, kPass, false>, a, plan, stream);
  }
}

template <typename T, int kN>
void launch_passes(const SsdArgs& a, const Plan& plan, cudaStream_t stream) {
  if (plan.parts > 1) launch_pass<T, kN, Pass::kStates>(a, plan, stream);
  launch_pass<T, kN, Pass::kOutputs>(a, plan, stream);
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

int64_t ssd_chunk_workspace(int64_t heads, int64_t headdim, int64_t d_state, int64_t n_groups, const Segments& s) {
  const Plan plan = make_plan(heads, headdim, d_state, n_groups, s);
  if (plan.parts == 1) return 0;
  const int64_t states = state_floats(plan, heads, d_state, s.tokens);
  return (states + states / ssd::kSlab) * static_cast<int64_t>(sizeof(float));
}

void ssd_chunk(const SsdArgs& a, cudaStream_t stream) {
  if (a.d_state > 256) {
    fail(M4J_ERR_UNSUPPORTED, "ssd_chunk: d_state %lld on the GPU, expected at most 256", static_cast<long long>(a.d_state));
  }
  Plan plan = make_plan(a.heads, a.headdim, a.d_state, a.n_groups, a.segments);
  plan.states = static_cast<float*>(a.workspace.data);
  plan.decays = plan.states + state_floats(plan, a.heads, a.d_state, a.segments.tokens);
  const int64_t piece = 16 / dtype_bytes(a.dtype, 1);
  plan.vectors = a.headdim % piece == 0 && a.d_state % piece == 0 && a.ld_x % piece == 0 && a.ld_bc % piece == 0 &&
                 a.ld_out % piece == 0 && aligned(a.x) && aligned(a.B) && aligned(a.C) && aligned(a.out);
  with_element_type(a.dtype, [&]<typename T>(T) {
    switch (padded_state(a.d_state)) {
      case 64: return launch_passes<T, 64>(a, plan, stream);
      case 128: return launch_passes<T, 128>(a, plan, stream);
      default: return launch_passes<T, 256>(a, plan, stream);
    }
  });
}

}  // namespace m4j::cuda
