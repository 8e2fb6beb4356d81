// The chunked SSD of "Transformers are SSMs", section 6: products inside a chunk, a recurrence between chunks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/ssd_chunk.cuh"
#include "ops/cuda/ssd_chunk_half.cuh"
#include "ops/cuda/ssd_chunk_hopper.cuh"
#include "ops/cuda/ssd_chunk_single.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {
namespace {

using ssd::Pass;
using ssd::Plan;

constexpr int64_t kMaxParts = 64;            // whose states a block folds before it starts

int64_t padded_state(int64_t d_state) { return d_state <= 64 ? 64 : d_state <= 128 ? 128 : 256; }

int64_t state_floats(const Plan& plan, int64_t heads, int64_t d_state, int64_t tokens) {
  const int64_t entries = 2 * tokens / (plan.span_chunks * int64_t{ssd::kChunk}) + 1;
  return entries * heads * plan.slabs * ssd::kSlab * padded_state(d_state);
}

int64_t workspace_bytes(const Plan& plan, int64_t heads, int64_t d_state, int64_t tokens) {
  const int64_t states = state_floats(plan, heads, d_state, tokens);
  return (states + states / ssd::kSlab) * static_cast<int64_t>(sizeof(float));
}

// Parts of the longest sequence, so that blocks fill the GPU evenly: as many rounds of them as it takes, times the time
// of a block in that of one chunk, as measured on an H200. More than one part costs the launch that computes states
// only, and the folding of states, and takes workspace: no more than there is.
Plan make_plan(int64_t heads, int64_t headdim, int64_t d_state, const Segments& s, int64_t bytes) {
  Plan plan = {};
  plan.slabs = static_cast<unsigned>(ceil_div(headdim, ssd::kSlab));
  const int64_t at_once = device_attribute(cudaDevAttrMultiProcessorCount) * (d_state <= 128 ? 3 : 2);  // slabs
  const int64_t chunks = std::max<int64_t>(ceil_div(s.longest, ssd::kChunk), 1);
  const double longest_sequences = s.longest == 0 ? 1 : static_cast<double>(s.tokens) / s.longest;
  double best = 0;
  for (int64_t parts = 1; parts <= std::min(kMaxParts, ceil_div(chunks, 2)); ++parts) {
    const int64_t part_chunks = ceil_div(chunks, parts);
    const double slabs = longest_sequences * heads * plan.slabs * ceil_div(chunks, part_chunks);
    const double rounds = std::ceil(slabs / at_once);
    const double cost =
        parts == 1 ? rounds * (part_chunks + 1.5) : rounds * (part_chunks * 1.45 + 0.1 * parts + 1.5) + 1;
    if (best != 0 && cost >= best) continue;
    Plan cut = plan;
    cut.span_chunks = static_cast<unsigned>(part_chunks);
    if (parts > 1 && workspace_bytes(cut, heads, d_state, s.tokens) > bytes) continue;
    best = cost;
    plan = cut;
  }
  plan.parts = static_cast<unsigned>(ceil_div(chunks, plan.span_chunks));
  return plan;
}

struct Kernel {
  void (*function)(SsdArgs, Plan);
  size_t shared_bytes;
  int slabs, threads;  // of a block
};

bool fits(const Kernel& k) {
  return k.shared_bytes <= static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

// On Hopper, and if the build holds code for its products: the kernel's body is empty otherwise.
bool runs_hopper_products(const Kernel& k) {
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) != 9) return false;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(k.function)), "cudaFuncGetAttributes");
  return attributes.numRegs > 64;
}

template <typename T, int kN, Pass kPass>
Kernel hopper_kernel() {
  constexpr int kSlabs = ssd::kHopperSlabs<kN>;
  return {ssd::ssd_hopper_kernel<T, kN, kPass, kSlabs>, sizeof(ssd::HopperShared<T, kN, kPass, kSlabs>), kSlabs,
          ssd::kHopperThreads<kSlabs>};
}

template <typename T, int kN, Pass kPass>
Kernel choose_kernel(bool vectors) {
  using namespace ssd;
  if constexpr (std::is_same_v<T, float>) {
    return {ssd_single_kernel<kN, kPass>, sizeof(SingleShared<kN, kPass>), kSingleSlabs, kSingleSlabs * kSlabThreads};
  } else {
    const Kernel hopper = hopper_kernel<T, kN, kPass>();
    if (vectors && runs_hopper_products(hopper)) return hopper;
    return {vectors ? ssd_half_kernel<T, kN, kPass, true> : ssd_half_kernel<T, kN, kPass, false>,
            sizeof(HalfShared<Decays<T>, kN, kPass, kHalfSlabs, 1>), kHalfSlabs, kHalfSlabs * kSlabThreads};
  }
}

// Where three slabs to a block would leave the last round of blocks half empty, some get two. How many blocks of three
// each group of heads of each part gets; `groups` of them in all have so many slabs.
int64_t choose_full(int64_t slabs, int64_t groups) {
  constexpr double kTwo = 0.78;    // the time of a block of two slabs in that of one of three, on an H200
  constexpr double kWorth = 0.95;  // of the time, for a mixture
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  int64_t best = 0;
  double best_cost = 0;
  for (int64_t full = ceil_div(slabs, 3); full >= 0; --full) {
    const int64_t threes = full * groups, twos = ceil_div(std::max<int64_t>(slabs - 3 * full, 0), 2) * groups;
    const int64_t idle = (processors - threes % processors) % processors;  // in the last round of threes: twos fill it
    const int64_t left = std::max<int64_t>(twos - idle, 0);
    const double cost = static_cast<double>(ceil_div(threes, processors)) +
                        kTwo * static_cast<double>(ceil_div(left, processors));
    if (best_cost != 0 && cost > kWorth * best_cost) continue;
    best_cost = cost;
    best = full;
  }
  return best;
}

void launch(const Kernel& k, const SsdArgs& a, Plan plan, cudaStream_t stream) {
  const int64_t slabs = a.heads / a.n_groups * plan.slabs, items = a.segments.count * plan.parts;
  const int64_t full = k.slabs == 3 ? choose_full(slabs, items * a.n_groups) : ceil_div(slabs, k.slabs);
  plan.slabs_per_block = static_cast<unsigned>(k.slabs);
  plan.full = static_cast<unsigned>(full);
  plan.fewer = static_cast<unsigned>(ceil_div(std::max<int64_t>(slabs - full * k.slabs, 0), k.slabs - 1));
  check(cudaFuncSetAttribute(k.function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(k.shared_bytes)),
        "cudaFuncSetAttribute");
  const int64_t blocks = items * a.n_groups * (plan.full + plan.fewer);
  launch_kernel("ssd_chunk", k.function,
                {.blocks = blocks,
                 .threads = static_cast<unsigned>(k.threads),
                 .shared_bytes = k.shared_bytes},
                stream, a, plan);
}

// float16 could not hold what the norm has not scaled yet.
template <int kN>
Kernel gated_kernel() { return hopper_kernel<__nv_bfloat16, kN, Pass::kGatedOutputs>(); }

template <typename T, int kN>
void launch_passes(const SsdArgs& a, const Plan& plan, cudaStream_t stream) {
  const Kernel states = choose_kernel<T, kN, Pass::kStates>(plan.vectors);
  const Kernel outputs = a.z != nullptr ? gated_kernel<kN>() : choose_kernel<T, kN, Pass::kOutputs>(plan.vectors);
  if (!fits(states) || !fits(outputs)) return ssd_step(a, stream);  // on small GPUs with large d_state or float32
  if (plan.parts > 1) launch(states, a, plan, stream);
  launch(outputs, a, plan, stream);
}

// Rows of x, B, C, z and out can be accessed 16 bytes at a time.
bool has_vectors(const SsdArgs& a) {
  const int64_t piece = 16 / dtype_bytes(a.dtype, 1);
  for (const int64_t n : {a.headdim, a.d_state, a.ld_x, a.ld_bc, a.ld_z, a.ld_out}) {
    if (n % piece != 0) return false;
  }
  for (const void* rows : {a.x, a.B, a.C, a.z, static_cast<const void*>(a.out)}) {
    if (!is_aligned(rows, 16)) return false;
  }
  return true;
}

// body(std::integral_constant) of the kernels' d_state.
template <typename Body>
auto with_padded_state(int64_t d_state, Body&& body) {
  switch (padded_state(d_state)) {
    case 64: return body(std::integral_constant<int, 64>());
    case 128: return body(std::integral_constant<int, 128>());
    default: return body(std::integral_constant<int, 256>());
  }
}

}  // namespace

bool ssd_chunk_gates(const SsdArgs& a) {
  if (a.dtype != DType::kBF16 || a.d_state > kMaxDState || !has_vectors(a)) return false;
  return with_padded_state(a.d_state, [&](auto n) {
    const Kernel k = gated_kernel<n()>();
    return runs_hopper_products(k) && fits(k);
  });
}

int64_t ssd_chunk_squares(int64_t heads, int64_t headdim) { return heads * ceil_div(headdim, ssd::kSlab); }

int64_t ssd_chunk_workspace(int64_t heads, int64_t headdim, int64_t d_state, int64_t, const Segments& s) {
  const Plan plan = make_plan(heads, headdim, d_state, s, INT64_MAX);
  return plan.parts == 1 ? 0 : workspace_bytes(plan, heads, d_state, s.tokens);
}

void ssd_chunk(const SsdArgs& a, cudaStream_t stream) {
  if (a.d_state > kMaxDState) {
    fail(M4J_ERR_UNSUPPORTED, "ssd_chunk: d_state %lld on the GPU, expected at most %lld",
         static_cast<long long>(a.d_state), static_cast<long long>(kMaxDState));
  }
  if (a.z != nullptr && !ssd_chunk_gates(a)) fail(M4J_ERR_INTERNAL, "ssd_chunk: takes no z here");
  if (a.segments.tokens == 0) return;
  Plan plan = make_plan(a.heads, a.headdim, a.d_state, a.segments, a.workspace.bytes);
  plan.states = static_cast<float*>(a.workspace.data);
  plan.decays = plan.states + state_floats(plan, a.heads, a.d_state, a.segments.tokens);
  plan.vectors = has_vectors(a);
  with_element_type(a.dtype, [&]<typename T>(T) {
    with_padded_state(a.d_state, [&](auto n) { launch_passes<T, n()>(a, plan, stream); });
  });
}

}  // namespace m4j::cuda
