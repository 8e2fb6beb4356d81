// A step of the selective scan with the product that its deltas come from, dt_proj, in one kernel.
#pragma once

#include "ops/cuda/linear.h"

namespace m4j::cuda {

// The scan of one token of each sequence, with delta = dt dt_proj^T, D, z, delta_bias and softplus. R dt_rank, padded.
struct DtScanStepArgs {
  SelectiveScanArgs scan;  // all but delta and workspace; its segments' rows are 0 ... T - 1
  const void* dt;          // [T, R] in scan.dtype, rows as far apart as those of scan.B
  DeviceMatrix dt_proj;    // [E, R]
};
// False, with nothing done, for sizes, types and devices that it is not made for.
bool dt_scan_step(const DtScanStepArgs&, cudaStream_t stream);

}  // namespace m4j::cuda
