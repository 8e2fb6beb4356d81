// The library's one exported function: the table of cuda_api.h over the classes of this folder.
#include "cuda/cuda_api.h"

#include <cstring>
#include <memory>

#include "api/error.h"
#include "cuda/advance.h"
#include "cuda/engine.h"
#include "cuda/model.h"
#include "cuda/states.h"

namespace m4j::cuda {
namespace {

m4j_status engine_create(int32_t ordinal, Engine** out, DeviceInfo* info, m4j_error* err) {
  return guarded(err, [&] {
    auto engine = std::make_unique<Engine>(ordinal);
    *info = engine->info();
    *out = engine.release();
  });
}

void engine_release(Engine* engine) { delete engine; }

int64_t engine_bytes(const Engine* engine) { return engine->bytes; }

m4j_status model_create(Engine* engine, const m4j::Model& host, Model** out, m4j_error* err) {
  return guarded(err, [&] {
    engine->use();
    *out = new Model(*engine, host);
  });
}

void model_release(Model* model) { delete model; }

m4j_status states_create(Model* model, int64_t max_slots, States** out, m4j_error* err) {
  return guarded(err, [&] {
    model->engine.use();
    *out = new States(*model, max_slots);
  });
}

void states_release(States* states) { delete states; }

// body() with the states' device current.
template <typename Body>
m4j_status on_device(States* states, m4j_error* err, Body&& body) {
  return guarded(err, [&] {
    states->model.engine.use();
    body();
  });
}

m4j_status states_reserve(States* states, int64_t count, m4j_error* err) {
  return on_device(states, err, [&] { states->reserve(count); });
}

m4j_status slot_zero(States* states, int64_t slot, m4j_error* err) {
  return on_device(states, err, [&] { states->zero(slot); });
}

m4j_status slot_copy(States* states, int64_t target, int64_t source, m4j_error* err) {
  return on_device(states, err, [&] { states->copy(target, source); });
}

m4j_status slot_read(States* states, int64_t slot, float* host, m4j_error* err) {
  return on_device(states, err, [&] { states->read(slot, host); });
}

m4j_status slot_write(States* states, int64_t slot, const float* host, m4j_error* err) {
  return on_device(states, err, [&] { states->write(slot, host); });
}

m4j_status advance_states(States* states, const m4j_advance_args& args, const int64_t* slots, m4j_error* err) {
  return on_device(states, err, [&] { advance(*states, args, slots); });
}

constexpr Api kApi = {engine_create,  engine_release, engine_bytes, model_create, model_release, states_create,
                      states_release, states_reserve, slot_zero,    slot_copy,    slot_read,     slot_write,
                      advance_states};

}  // namespace
}  // namespace m4j::cuda

extern "C" __attribute__((visibility("default"))) const m4j::cuda::Api* m4j_cuda_api(const char* version) {
  return std::strcmp(version, M4J_VERSION) == 0 ? &m4j::cuda::kApi : nullptr;
}
