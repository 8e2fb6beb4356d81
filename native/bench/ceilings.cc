#include "ceilings.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstring>

#include "ops/ops.h"
#include "runtime/memory.h"
#include "runtime/team.h"

namespace m4j::bench {
namespace {

constexpr int64_t kReadFloats = int64_t{1} << 28;
constexpr int64_t kM = 512, kN = 3072, kK = 768;  // prefill of 512 tokens through in_proj of the 130m shape

// Sum of n floats in lanes that fit the vector registers, with the widest loads that the processor has.
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
float read_all(const float* p, int64_t n) {
  typedef float Lanes __attribute__((vector_size(64), aligned(4)));
  Lanes sums[4] = {};
  for (int64_t i = 0; i + 64 <= n; i += 64)
    for (int l = 0; l < 4; ++l) sums[l] += *reinterpret_cast<const Lanes*>(p + i + 16 * l);
  const Lanes all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = 0;
  for (int l = 0; l < 16; ++l) sum += all[l];
  return sum;
}

using CblasSgemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a,
                            int lda, const float* b, int ldb, float beta, float* c, int ldc);
constexpr int kRowMajor = 101, kNoTrans = 111, kTrans = 112;

// A serial BLAS, one call a thread: the same way of sharing work as ours.
CblasSgemm find_sgemm(std::string* how) {
  for (const char* name : {"libopenblas.so.0", "libblis.so.4", "libcblas.so.3"}) {
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) continue;
    if (auto* set_threads = reinterpret_cast<void (*)(int)>(dlsym(library, "openblas_set_num_threads"))) set_threads(1);
    if (void* f = dlsym(library, "cblas_sgemm")) {
      *how = name;
      return reinterpret_cast<CblasSgemm>(f);
    }
  }
  return nullptr;
}

}  // namespace

Ceilings measure_ceilings(int threads, int repeat) {
  Ceilings c;
  Team team(threads);
  {
    FloatBuffer data(kReadFloats);
    team.run([&](int i) {
      const int64_t begin = kReadFloats * i / threads, end = kReadFloats * (i + 1) / threads;
      for (int64_t k = begin; k < end; ++k) data[k] = static_cast<float>(k % 7);
    });
    volatile float sink = 0;
    const auto read = [&] {
      team.run([&](int i) {
        const int64_t begin = kReadFloats * i / threads, end = kReadFloats * (i + 1) / threads;
        const float sum = read_all(data.data() + begin, end - begin);
        if (i == 0) sink = sum;
      });
    };
    const Spread s = time_call(read, repeat);
    const double gb = static_cast<double>(kReadFloats) * 4e-9;
    c.read_gb_s = {gb / s.median, gb / s.max, gb / s.min, s.samples};
  }
  {
    FloatBuffer a(kM * kK), b(kN * kK), out(kM * kN);
    for (int64_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 13) - 6.0f;
    for (int64_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i % 11) - 5.0f;
    const CblasSgemm sgemm = find_sgemm(&c.sgemm_how);
    if (sgemm == nullptr) c.sgemm_how = "own linear op (no BLAS library found)";
    const Ops& ops = *find_ops(nullptr);
    const int64_t scratch_floats = (ops.linear_scratch(kK, DType::kF32) + 15) / 16 * 16;
    FloatBuffer scratch(scratch_floats * threads);
    const auto product = [&] {
      team.run([&](int i) {
        if (sgemm != nullptr) {
          const int64_t begin = kN * i / threads, end = kN * (i + 1) / threads;
          sgemm(kRowMajor, kNoTrans, kTrans, kM, static_cast<int>(end - begin), kK, 1.0f, a.data(), kK,
                b.data() + begin * kK, kK, 0.0f, out.data() + begin, kN);
        } else {
          const LinearArgs args{a.data(), kK, b.data(), DType::kF32, kK, nullptr, kM, kK, kN, out.data(), kN};
          ops.linear(args, Share{i, threads, scratch.data() + i * scratch_floats, scratch_floats});
        }
      });
    };
    const Spread s = time_call(product, repeat);
    const double gflop = 2e-9 * static_cast<double>(kM) * kN * kK;
    c.sgemm_gflops = {gflop / s.median, gflop / s.max, gflop / s.min, s.samples};
  }
  return c;
}

}  // namespace m4j::bench
