// The library's one exported function: the table of cuda_api.h over the classes of this folder.
#include "cuda/cuda_api.h"

#include <cstring>
#include <memory>

#include "api/error.h"
#include "cuda/advance.h"
#include "cuda/engine.h"
#include "cuda/model.h"
#include "cuda/self_test.h"
#include "cuda/states.h"
#include "cuda/tensor_ops.h"

namespace m4j::cuda {
namespace {

m4j_status engine_create(int32_t ordinal, const Ops& reference, Engine** out, DeviceInfo* info, m4j_error* err) {
  return guarded(err, [&] {
    auto engine = std::make_unique<Engine>(ordinal);
    const float self_test_ms = self_test(*engine, reference);
    *info = engine->info();
    info->self_test_ms = self_test_ms;
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

void model_release(Model* model) {
  cudaSetDevice(model->engine.ordinal());  // of whatever thread
  delete model;
}

m4j_status states_create(Model* model, int64_t max_slots, States** out, m4j_error* err) {
  return guarded(err, [&] {
    model->engine.use();
    *out = new States(*model, max_slots);
  });
}

void states_release(States* states) {
  cudaSetDevice(states->model.engine.ordinal());
  delete states;
}

// body() with the device current.
template <typename Body>
m4j_status on_device(Engine* engine, m4j_error* err, Body&& body) {
  return guarded(err, [&] {
    engine->use();
    body();
  });
}
template <typename Body>
m4j_status on_device(States* states, m4j_error* err, Body&& body) {
  return on_device(&states->model.engine, err, body);
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

m4j_status buffer_create(Engine* engine, int64_t bytes, void** out, m4j_error* err) {
  return on_device(engine, err, [&] {
    DeviceBuffer buffer(bytes, "buffer", &engine->bytes);
    check(cudaMemsetAsync(buffer.data(), 0, static_cast<std::size_t>(bytes), engine->stream), "cudaMemset");
    engine->wait();
    *out = buffer.give_up();
  });
}

void buffer_release(Engine* engine, void* data, int64_t bytes) {
  cudaSetDevice(engine->ordinal());
  DeviceBuffer::take_over(data, bytes, &engine->bytes);
}

// body(), and then waits: after a failure too, since what it has launched reads the caller's memory.
template <typename Body>
m4j_status run_to_end(Engine* engine, m4j_error* err, Body&& body) {
  return on_device(engine, err, [&] {
    try {
      body();
    } catch (...) {
      cudaStreamSynchronize(engine->stream);
      throw;
    }
    engine->wait();
  });
}

m4j_status run_copy_bytes(Engine* engine, void* to, const void* from, int64_t bytes, int32_t direction,
                          m4j_error* err) {
  return run_to_end(engine, err, [&] { copy_bytes(*engine, to, from, bytes, direction); });
}

template <typename Args>
m4j_status run_op(Engine* engine, const Args& args, m4j_error* err) {
  return run_to_end(engine, err, [&] { run(*engine, args); });
}

m4j_status run_embedding(Engine* engine, const m4j_tensor& table, const int32_t* ids, int64_t n_ids,
                         const m4j_tensor& out, m4j_error* err) {
  return run_to_end(engine, err, [&] { embedding(*engine, table, ids, n_ids, out); });
}

m4j_status run_softmax(Engine* engine, const m4j_tensor& x, const m4j_tensor& out, bool log, m4j_error* err) {
  return run_to_end(engine, err, [&] { softmax(*engine, x, out, log); });
}

m4j_status run_copy(Engine* engine, const m4j_tensor& x, const m4j_tensor& out, m4j_error* err) {
  return run_to_end(engine, err, [&] { copy(*engine, x, out); });
}

m4j_status run_sample(Engine* engine, const m4j_tensor& logits, const SampleItem* items, SampleResult* results,
                      m4j_error* err) {
  return run_to_end(engine, err, [&] { sample(*engine, logits, items, results); });
}

constexpr Api kApi = {engine_create,  engine_release, engine_bytes, model_create, model_release, states_create,
                      states_release, states_reserve, slot_zero,    slot_copy,    slot_read,     slot_write,
                      advance_states, buffer_create,  buffer_release, run_copy_bytes, run_op,       run_op,
                      run_op,         run_op,         run_op,         run_embedding, run_softmax,  run_copy,
                      run_sample};

}  // namespace
}  // namespace m4j::cuda

extern "C" __attribute__((visibility("default"))) const m4j::cuda::Api* m4j_cuda_api(const char* version) {
  return std::strcmp(version, M4J_VERSION) == 0 ? &m4j::cuda::kApi : nullptr;
}
