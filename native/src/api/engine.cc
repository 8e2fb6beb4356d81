// Engine and facts about the library.
#include <cstring>

#include "api/error.h"
#include "api/handles.h"
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

m4j_engine* create_engine(const m4j_engine_options* options) {
  int threads = 0;
  const char* target = nullptr;
  EngineLog log;
  if (options != nullptr) {
    require_args(options, "options");
    require_reserved_zero(options->reserved, "options");
    threads = options->threads;
    target = options->simd_target;
    log = {options->log, options->log_user};
  }
  if (threads < 0 || threads > kMaxThreads) {
    fail(M4J_ERR_INVALID_ARGUMENT, "options.threads: is %d, expected 0 ... %d", threads, kMaxThreads);
  }
  const Ops* ops = find_ops(target);
  if (ops == nullptr) {
    fail(M4J_ERR_UNSUPPORTED, "options.simd_target: expected one of \"%s\", found \"%s\"", target_names(), target);
  }
  const auto engine = make_counted<Engine>(threads == 0 ? default_thread_count() : threads, *ops, log);
  engine->log(M4J_LOG_DEBUG, "engine with %d threads on %s", engine->threads(), ops->name);
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
