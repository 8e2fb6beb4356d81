// A step of the selective scan with the product that its deltas come from, dt_proj, in one kernel.
#pragma once

#include "ops/cuda/linear.h"

namespace m4j::cuda {

// As SelectiveScanArgs, for T sequences of one token each; delta = softplus(dt dt_proj^T + dt_bias). R dt_rank, padded.
struct DtScanStepArgs {
  DType dtype;    // of u, dt, B, C, z, out and dt_proj
  const void* u;  // [T, E]
  int64_t ld_u;
  const void* dt;  // [T, R]
  const void* B;   // [T, N]
  const void* C;   // [T, N]
  int64_t ld_dbc;  // of dt, B and C
  DeviceMatrix dt_proj;  // [E, R]
  const float* dt_bias;  // [E]
  const float* A;        // [N, E]
  const float* D;        // [E]
  const void* z;         // [T, E]
  int64_t ld_z;
  Segments segments;  // rows 0 ... T - 1
  int64_t d_inner, d_state;
  void* states;         // [S, N, E] in state_type with slot_stride; read, then replaced
  int64_t slot_stride;  // elements
  DType state_type;
  void* out;  // [T, E]; may be u
  int64_t ld_out;
};
// False, with nothing done, for sizes, types and devices that it is not made for.
bool dt_scan_step(const DtScanStepArgs&, cudaStream_t stream);

}  // namespace m4j::cuda
