// What libmamba4j asks of libmamba4j_cuda: a table of functions between two libraries that are built together. Like the
// public ABI it lets nothing thrown through; arguments have been validated by src/api. Handles are plain pointers. One
// call at a time on an engine and what was made from it: the caller holds Engine::Turn, or nobody else has the object.
#pragma once

#include <cstdint>

#include "mamba4j.h"

namespace m4j {

class Model;
struct Ops;
struct SampleItem;
struct SampleResult;

namespace cuda {

class Engine;
class Model;
class States;

struct DeviceInfo {
  char name[128];
  int32_t compute_major, compute_minor;
  int64_t memory_bytes, free_bytes;
  float self_test_ms;  // 0 if the device had passed before
};

struct Api {
  // Fills *info, and a reason in *err if the device cannot be used: what is missing, or that a kernel's results are not
  // those of the reference.
  m4j_status (*engine_create)(int32_t ordinal, const Ops& reference, Engine** out, DeviceInfo* info, m4j_error* err);
  void (*engine_release)(Engine*);
  // Bytes of GPU memory held by the engine and all that was made from it.
  int64_t (*engine_bytes)(const Engine*);

  // Uploads all weights; the host's matrices are not needed afterwards.
  m4j_status (*model_create)(Engine*, const m4j::Model& host, Model** out, m4j_error* err);
  void (*model_release)(Model*);

  m4j_status (*states_create)(Model*, int64_t max_slots, States** out, m4j_error* err);
  void (*states_release)(States*);
  // Makes room for slots 0 ... count - 1; those that exist keep their content and address.
  m4j_status (*states_reserve)(States*, int64_t count, m4j_error* err);
  m4j_status (*slot_zero)(States*, int64_t slot, m4j_error* err);
  m4j_status (*slot_copy)(States*, int64_t target, int64_t source, m4j_error* err);
  // The whole state, as it lies in a slot of the CPU, to and from host memory.
  m4j_status (*slot_read)(States*, int64_t slot, float* host, m4j_error* err);
  m4j_status (*slot_write)(States*, int64_t slot, const float* host, m4j_error* err);

  // As m4j_advance; slots[i] are slot numbers.
  m4j_status (*advance)(States*, const m4j_advance_args&, const int64_t* slots, m4j_error* err);

  // Zeroed memory of callers, at a multiple of 256 bytes.
  m4j_status (*buffer_create)(Engine*, int64_t bytes, void** out, m4j_error* err);
  void (*buffer_release)(Engine*, void* data, int64_t bytes);
  // As m4j_copy_bytes.
  m4j_status (*copy_bytes)(Engine*, void* to, const void* from, int64_t bytes, int32_t direction, m4j_error* err);

  // The operations of mamba4j.h. Whether tensors lie in memory of this device is checked here.
  m4j_status (*selective_scan)(Engine*, const m4j_selective_scan_args&, m4j_error* err);
  m4j_status (*ssd)(Engine*, const m4j_ssd_args&, m4j_error* err);
  m4j_status (*causal_conv1d)(Engine*, const m4j_causal_conv1d_args&, m4j_error* err);
  m4j_status (*rms_norm)(Engine*, const m4j_rms_norm_args&, m4j_error* err);
  m4j_status (*linear)(Engine*, const m4j_linear_args&, m4j_error* err);
  m4j_status (*embedding)(Engine*, const m4j_tensor& table, const int32_t* ids, int64_t n_ids, const m4j_tensor& out,
                          m4j_error* err);
  m4j_status (*softmax)(Engine*, const m4j_tensor& x, const m4j_tensor& out, bool log, m4j_error* err);
  m4j_status (*copy)(Engine*, const m4j_tensor& x, const m4j_tensor& out, m4j_error* err);
  // items [rows of logits] and results lie in host memory.
  m4j_status (*sample)(Engine*, const m4j_tensor& logits, const SampleItem* items, SampleResult* results, m4j_error* err);
};

// The one symbol that the library exports. `version` is M4J_VERSION of the caller; null if it is another.
using GetApi = const Api* (*)(const char* version);
constexpr const char* kGetApiName = "m4j_cuda_api";

}  // namespace cuda
}  // namespace m4j
