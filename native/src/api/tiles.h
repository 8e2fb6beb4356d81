// Shared by the public operations: tensors of any strides in and out of the token-major float32 rows that ops take.
#pragma once

#include <cstdint>

#include "mamba4j.h"
#include "ops/ops.h"
#include "runtime/memory.h"

namespace m4j {

// Tokens packed at a time, so that scratch memory does not grow with the length.
constexpr int64_t kTileTokens = 256;

// A float32 matrix of any strides, whose columns may come in two dimensions: [rows, outer, inner].
struct MatrixView {
  float* data;
  int64_t rows, row_stride;
  int64_t outer, outer_stride;
  int64_t inner, inner_stride;

  int64_t columns() const { return outer * inner; }
  bool has_contiguous_rows() const {
    return (inner == 1 || inner_stride == 1) && (outer == 1 || outer_stride == inner);
  }
};

// The named dimensions of t as a matrix; outer_dim may be kNoDim. All null if t is absent.
constexpr int kNoDim = -1;
MatrixView matrix_view(const m4j_tensor& t, int row_dim, int outer_dim, int inner_dim);

// The member's share of rows [begin, begin + count) of `view` to contiguous rows, and back.
void pack(const MatrixView& view, int64_t begin, int64_t count, float* to, const Share& share);
void unpack(const float* from, const MatrixView& view, int64_t begin, int64_t count, const Share& share);

// A whole matrix, packed; empty if t is absent.
FloatBuffer packed_matrix(const m4j_tensor& t, int row_dim, int inner_dim);
FloatBuffer packed_vector(const m4j_tensor& t);

struct Rows {
  float* data = nullptr;
  int64_t ld = 0;
};

// An input or output of an op, tile by tile: in place where its rows are contiguous, else through a buffer. Dimension
// 0 is the batch unless it is the row dimension.
class TiledOperand {
 public:
  enum class Packing { kAsNeeded, kAlways };
  TiledOperand(const m4j_tensor& t, int row_dim, int outer_dim, int inner_dim, int64_t tile_rows,
               Packing packing = Packing::kAsNeeded);

  // Rows [begin, begin + count) of a batch entry as an op takes them; absent: null. Members meet at a barrier
  // before they use the rows of an input and before they store those of an output.
  Rows load(int64_t batch, int64_t begin, int64_t count, const Share& share) const;
  Rows target(int64_t batch, int64_t begin) const;
  void store(int64_t batch, int64_t begin, int64_t count, const Share& share) const;

 private:
  MatrixView at(int64_t batch) const;
  MatrixView view_{};
  int64_t batch_stride_ = 0;
  FloatBuffer tile_;
};

}  // namespace m4j
