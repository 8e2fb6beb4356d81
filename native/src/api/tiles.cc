#include "api/tiles.h"

#include "runtime/checked.h"

namespace m4j {

MatrixView matrix_view(const m4j_tensor& t, int row_dim, int outer_dim, int inner_dim) {
  if (t.data == nullptr) return {};
  return {.data = static_cast<float*>(t.data),
          .rows = t.shape[row_dim],
          .row_stride = t.strides[row_dim],
          .outer = outer_dim == kNoDim ? 1 : t.shape[outer_dim],
          .outer_stride = outer_dim == kNoDim ? 0 : t.strides[outer_dim],
          .inner = t.shape[inner_dim],
          .inner_stride = t.strides[inner_dim]};
}

void pack(const MatrixView& v, int64_t begin, int64_t count, float* to, const Share& share) {
  int64_t first, last;
  share.range(count, 1, &first, &last);
  for (int64_t r = first; r < last; ++r) {
    for (int64_t o = 0; o < v.outer; ++o) {
      const float* from = v.data + (begin + r) * v.row_stride + o * v.outer_stride;
      float* row = to + (r * v.outer + o) * v.inner;
      for (int64_t i = 0; i < v.inner; ++i) row[i] = from[i * v.inner_stride];
    }
  }
}

void unpack(const float* from, const MatrixView& v, int64_t begin, int64_t count, const Share& share) {
  int64_t first, last;
  share.range(count, 1, &first, &last);
  for (int64_t r = first; r < last; ++r) {
    for (int64_t o = 0; o < v.outer; ++o) {
      const float* row = from + (r * v.outer + o) * v.inner;
      float* to = v.data + (begin + r) * v.row_stride + o * v.outer_stride;
      for (int64_t i = 0; i < v.inner; ++i) to[i * v.inner_stride] = row[i];
    }
  }
}

FloatBuffer packed_matrix(const m4j_tensor& t, int row_dim, int inner_dim) {
  if (t.data == nullptr) return FloatBuffer();
  const MatrixView view = matrix_view(t, row_dim, kNoDim, inner_dim);
  FloatBuffer result(checked_mul(view.rows, view.inner));
  pack(view, 0, view.rows, result.data(), Share{0, 1, nullptr, 0});
  return result;
}

FloatBuffer packed_vector(const m4j_tensor& t) {
  if (t.data == nullptr) return FloatBuffer();
  FloatBuffer result(t.shape[0]);
  const float* from = static_cast<const float*>(t.data);
  for (int64_t i = 0; i < result.size(); ++i) result[i] = from[i * t.strides[0]];
  return result;
}

TiledOperand::TiledOperand(const m4j_tensor& t, int row_dim, int outer_dim, int inner_dim, int64_t tile_rows,
                           Packing packing)
    : view_(matrix_view(t, row_dim, outer_dim, inner_dim)) {
  if (t.data == nullptr) return;
  if (row_dim != 0) batch_stride_ = t.strides[0];
  if (packing == Packing::kAlways || !view_.has_contiguous_rows()) {
    tile_ = FloatBuffer(checked_mul(tile_rows, checked_mul(view_.outer, view_.inner)));
  }
}

MatrixView TiledOperand::at(int64_t batch) const {
  MatrixView view = view_;
  view.data += batch * batch_stride_;
  return view;
}

Rows TiledOperand::load(int64_t batch, int64_t begin, int64_t count, const Share& share) const {
  if (view_.data != nullptr && tile_.data() != nullptr) pack(at(batch), begin, count, tile_.data(), share);
  return target(batch, begin);
}

Rows TiledOperand::target(int64_t batch, int64_t begin) const {
  if (view_.data == nullptr) return {};
  if (tile_.data() != nullptr) return {tile_.data(), view_.columns()};
  return {at(batch).data + begin * view_.row_stride, view_.row_stride};
}

void TiledOperand::store(int64_t batch, int64_t begin, int64_t count, const Share& share) const {
  if (tile_.data() != nullptr) unpack(tile_.data(), at(batch), begin, count, share);
}

}  // namespace m4j
