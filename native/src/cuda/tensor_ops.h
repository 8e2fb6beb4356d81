// The public operations on tensors in GPU memory: put on the engine's stream, not waited for. Arguments have been
// validated by src/api, but for where the tensors lie: a tensor outside of this GPU's memory throws Failure.
#pragma once

#include "cuda/engine.h"
#include "mamba4j.h"

namespace m4j::cuda {

void run(Engine&, const m4j_selective_scan_args&);
void run(Engine&, const m4j_ssd_args&);
void run(Engine&, const m4j_causal_conv1d_args&);
void run(Engine&, const m4j_rms_norm_args&);
void run(Engine&, const m4j_linear_args&);
void embedding(Engine&, const m4j_tensor& table, const int32_t* ids, int64_t n_ids, const m4j_tensor& out);
void softmax(Engine&, const m4j_tensor& x, const m4j_tensor& out, bool log);
void copy(Engine&, const m4j_tensor& x, const m4j_tensor& out);
// Waits for the results, which like the items lie in host memory.
void sample(Engine&, const m4j_tensor& logits, const SampleItem* items, SampleResult* results);
void copy_bytes(Engine&, void* to, const void* from, int64_t bytes, int32_t direction);

}  // namespace m4j::cuda
