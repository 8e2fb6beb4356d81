#include "ops/cpu/cpu_ops.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif
#if M4J_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef __aarch64__
#include <sys/auxv.h>
#include <sys/prctl.h>
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/cpu_ops.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

void Embedding(const EmbeddingArgs&, const Share&);
void RmsNorm(const RmsNormArgs&, const Share&);
void Linear(const LinearArgs&, const Share&);
void Conv1d(const Conv1dArgs&, const Share&);
void SelectiveScan(const SelectiveScanArgs&, const Share&);
void SsdStep(const SsdArgs&, const Share&);
void SsdChunk(const SsdArgs&, const Share&);
void Softmax(const SoftmaxArgs&, const Share&);
void LogSoftmax(const SoftmaxArgs&, const Share&);
void Sample(const SampleArgs&, const Share&);
int64_t SsdChunkScratch(int64_t headdim, int64_t d_state, int64_t chunk_size);
int64_t LinearScratch(int64_t in, DType weight_dtype);
int64_t SampleScratch(int64_t vocab_size);
#if HWY_TARGET != HWY_SSE4
void LinearDot(const LinearArgs&, const Share&);
int64_t LinearDotScratch(int64_t in, DType weight_dtype);
#endif
#if HWY_TARGET == HWY_AVX3
void LinearBf16(const LinearArgs&, const Share&);
int64_t LinearBf16Scratch(int64_t in, DType weight_dtype);
#endif
#if M4J_AMX && HWY_TARGET == HWY_AVX3
void LinearAmx(const LinearArgs&, const Share&);
int64_t LinearAmxScratch(int64_t in, DType weight_dtype);
#endif

namespace {

// Without and with dot products of bytes.
#if HWY_TARGET == HWY_AVX3
constexpr const char *kName = "avx3", *kDotName = "avx3_vnni";
#elif HWY_TARGET == HWY_AVX2
constexpr const char *kName = "avx2", *kDotName = "avx2_vnni";
#elif HWY_TARGET == HWY_SSE4
constexpr const char* kName = "sse4";
#elif HWY_TARGET == HWY_SVE_256
constexpr const char *kName = "sve_256", *kDotName = "sve_256_dotprod";
#else
constexpr const char *kName = "neon", *kDotName = "neon_dotprod";
#endif

constexpr Ops kOps = {kName,    Embedding, RmsNorm,    Linear, Conv1d,          SelectiveScan, SsdStep,
                      SsdChunk, Softmax,   LogSoftmax, Sample, SsdChunkScratch, LinearScratch, SampleScratch};

// kOps with other matrix products.
#if HWY_TARGET != HWY_SSE4
constexpr Ops with_linear(const char* name, decltype(Ops::linear) linear, decltype(Ops::linear_scratch) scratch) {
  Ops ops = kOps;
  ops.name = name;
  ops.linear = linear;
  ops.linear_scratch = scratch;
  return ops;
}

constexpr Ops kDotOps = with_linear(kDotName, LinearDot, LinearDotScratch);
#endif
#if HWY_TARGET == HWY_AVX3
constexpr Ops kBf16Ops = with_linear("avx3_bf16", LinearBf16, LinearBf16Scratch);
#if M4J_AMX
constexpr Ops kAmxOps = with_linear("amx", LinearAmx, LinearAmxScratch);
#endif
#endif

}  // namespace

const Ops& TargetOps() { return kOps; }
#if HWY_TARGET != HWY_SSE4
const Ops& DotOps() { return kDotOps; }
#endif
#if HWY_TARGET == HWY_AVX3
const Ops& Bf16Ops() { return kBf16Ops; }
#if M4J_AMX
const Ops& AmxOps() { return kAmxOps; }
#endif
#endif

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace m4j {
namespace {

#if HWY_TARGETS & HWY_SVE_256
// The processor has SVE, with vectors of 256 bits in this thread and those that it starts.
bool have_sve_256() {
  const int length = prctl(PR_SVE_GET_VL);
  return length >= 0 && (length & PR_SVE_VL_LEN_MASK) == 32;
}
#endif

#ifdef __x86_64__
// Of CPUID, leaf 7.1, EAX: dot products of bytes without AVX-512, products of bfloat16 pairs with it.
constexpr unsigned kAvxVnni = 1u << 4, kAvx512Bf16 = 1u << 5;

bool have(unsigned feature) {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & feature) != 0;
}

#if M4J_AMX
// The processor has tiles of bfloat16 and int8, and the system lets this process use them: their 8 KB of registers are
// saved only for processes that asked.
bool have_amx() {
  constexpr unsigned kAmx = 1u << 22 | 1u << 24 | 1u << 25;     // CPUID, leaf 7, EDX: bfloat16, tiles, int8
  constexpr long kRequestPermission = 0x1023, kTileData = 18;   // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmx) == kAmx &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif
#endif

}  // namespace

#if (HWY_TARGETS & ~(HWY_AVX3 | HWY_AVX2 | HWY_SSE4)) && HWY_ARCH_X86
#error "Highway is set to a target that the detection below does not know."
#endif

int cpu_ops(const Ops** list) {
  int count = 0;
#if HWY_ARCH_X86
  // Everything that the compiler may use in a target, so a target needs all of the ones below it too.
  __builtin_cpu_init();
  const bool sse4 = __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") &&
                    __builtin_cpu_supports("sse4.2");
  const bool avx2 = sse4 && __builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") &&
                    __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool avx3 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
  const bool vnni = avx3 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && have(kAvx512Bf16);
  const bool avx2_vnni = avx2 && have(kAvxVnni);
#if M4J_AMX
  if (bf16 && have_amx()) list[count++] = &N_AVX3::AmxOps();
#endif
  if (bf16) list[count++] = &N_AVX3::Bf16Ops();
  if (vnni) list[count++] = &N_AVX3::DotOps();
  if (avx3) list[count++] = &N_AVX3::TargetOps();
  if (avx2_vnni) list[count++] = &N_AVX2::DotOps();
  if (avx2) list[count++] = &N_AVX2::TargetOps();
  if (sse4) list[count++] = &N_SSE4::TargetOps();
#else
  const bool dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#if HWY_TARGETS & HWY_SVE_256
  const bool sve_256 = have_sve_256();
  if (sve_256 && dotprod) list[count++] = &N_SVE_256::DotOps();
  if (sve_256) list[count++] = &N_SVE_256::TargetOps();
#endif
  if (dotprod) list[count++] = &HWY_NAMESPACE::DotOps();
  // NEON, which every processor has.
  list[count++] = &HWY_NAMESPACE::TargetOps();
#endif
  return count;
}

}  // namespace m4j
#endif  // HWY_ONCE
