// Engine and facts about the library.
#include <chrono>
#include <cstring>

#include "api/error.h"
#include "api/handles.h"
#include "model/self_test.h"
#include "ops/ops.h"

namespace m4j {
namespace {

constexpr int32_t kMaxThreads = 1024;

// "avx2 sse4 sse2 reference", put together once.
struct TargetNames {
  TargetNames() {
    const OpsList ops = available_ops();
    std::size_t used = 0;
    for (int i = 0; i < ops.count && used < sizeof text; ++i) {
      used += static_cast<std::size_t>(
          std::snprintf(text + used, sizeof text - used, i == 0 ? "%s" : " %s", ops.items[i]->name));
    }
  }
  char text[256] = {};
};

const char* target_names() {
  static const TargetNames names;
  return names.text;
}

std::unique_ptr<CudaDevice> open_gpu(const m4j_engine_options& options) {
  switch (options.device) {
    case M4J_DEVICE_CPU:
      if (options.device_index == 0) return nullptr;
      fail(M4J_ERR_INVALID_ARGUMENT, "options.device_index: is %d, expected 0 for the CPU", options.device_index);
    case M4J_DEVICE_CUDA:
      return std::make_unique<CudaDevice>(options.device_index, options.cuda_library);
    default:
      fail(M4J_ERR_INVALID_ARGUMENT, "options.device: is %d, expected M4J_DEVICE_CPU or M4J_DEVICE_CUDA",
           options.device);
  }
}

m4j_engine* create_engine(const m4j_engine_options* given) {
  m4j_engine_options options{};
  if (given != nullptr) {
    options = require_args(given, "options");
    require_reserved_zero(options.reserved, "options");
  }
  if (options.threads < 0 || options.threads > kMaxThreads) {
    fail(M4J_ERR_INVALID_ARGUMENT, "options.threads: is %d, expected 0 ... %d", options.threads, kMaxThreads);
  }
  const Ops* ops = find_ops(options.simd_target);
  if (ops == nullptr) {
    fail(M4J_ERR_UNSUPPORTED, "options.simd_target: expected one of \"%s\", found \"%s\"", target_names(),
         options.simd_target);
  }
  const auto engine = make_counted<Engine>(options.threads == 0 ? default_thread_count() : options.threads, *ops,
                                           open_gpu(options), EngineLog{options.log, options.log_user});
  engine->log(M4J_LOG_DEBUG, "engine with %d threads on %s", engine->threads(), ops->name);
  if (engine->gpu != nullptr) {
    const auto begin = std::chrono::steady_clock::now();
    self_test_models(engine, options.device_index);
    const std::chrono::duration<double, std::milli> models = std::chrono::steady_clock::now() - begin;
    const cuda::DeviceInfo& info = engine->gpu->info;
    engine->log(M4J_LOG_DEBUG,
                "engine on cuda:%d, %s, compute capability %d.%d, %.1f of %.1f GB free, self-test %.0f ms",
                options.device_index, info.name, info.compute_major, info.compute_minor,
                static_cast<double>(info.free_bytes) / 1e9, static_cast<double>(info.memory_bytes) / 1e9,
                double{info.self_test_ms} + models.count());
  }
  return new_handle<m4j_engine>(engine);
}

}  // namespace
}  // namespace m4j

int32_t m4j_abi_version(void) { return M4J_ABI_VERSION; }

const char* m4j_version(void) { return M4J_VERSION; }

int64_t m4j_native_bytes(void) { return m4j::counted_bytes(); }

const char* m4j_simd_targets(void) { return m4j::target_names(); }

m4j_status m4j_engine_create(const m4j_engine_options* options, m4j_engine** out, m4j_error* err) {
  return m4j::guarded(err, [&] {
    m4j::require(out, "out");
    *out = m4j::create_engine(options);
  });
}

void m4j_engine_release(m4j_engine* engine) { m4j::delete_handle(engine); }

int32_t m4j_engine_threads(const m4j_engine* engine) { return engine == nullptr ? 0 : engine->impl->threads(); }

const char* m4j_engine_simd_target(const m4j_engine* engine) {
  return engine == nullptr ? "" : engine->impl->ops.name;
}

const char* m4j_engine_device_name(const m4j_engine* engine) {
  if (engine == nullptr) return "";
  return engine->impl->gpu == nullptr ? "CPU" : engine->impl->gpu->info.name;
}

int64_t m4j_engine_device_bytes(const m4j_engine* engine) {
  if (engine == nullptr || engine->impl->gpu == nullptr) return 0;
  m4j::Engine::Turn turn(*engine->impl);
  return engine->impl->gpu->api.engine_bytes(engine->impl->gpu->engine);
}
