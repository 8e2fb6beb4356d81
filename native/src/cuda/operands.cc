#include "cuda/operands.h"

#include <algorithm>

#include "ops/cuda/check.h"
#include "runtime/checked.h"

namespace m4j::cuda {
namespace {

constexpr int64_t kScratchBytes = 256 << 20;   // of what is packed at once
constexpr int64_t kMostSequences = 1 << 14;    // in one launch
constexpr int64_t kCutTokens = 1 << 10;
constexpr int64_t kRowAlignment = 8;           // elements: vectors of any kernel

int64_t round_up(int64_t n, int64_t to) { return checked_add(n, to - 1) / to * to; }

// Elements [begin, begin + count) of a dimension.
Array slice(Array a, int dim, int64_t begin, int64_t count) {
  a.data = static_cast<char*>(a.data) + begin * a.strides[dim] * dtype_bytes(a.dtype, 1);
  a.shape[dim] = count;
  return a;
}

bool is_contiguous(const Array& a) {
  int64_t expected = 1;
  for (int d = kCopyRank - 1; d >= 0; expected *= a.shape[d--]) {
    if (a.shape[d] > 1 && a.strides[d] != expected) return false;
  }
  return true;
}

// The same shape without gaps at `data`.
Array contiguous(const Array& like, DType dtype, void* data) {
  Array a = like;
  a.dtype = dtype;
  a.data = data;
  int64_t stride = 1;
  for (int d = kCopyRank - 1; d >= 0; stride *= a.shape[d--]) a.strides[d] = stride;
  return a;
}

int64_t count(const Array& a) { return a.shape[0] * a.shape[1] * a.shape[2] * a.shape[3]; }

}  // namespace

void check_side(int ordinal, const char* name, const void* p, bool on_device) {
  cudaPointerAttributes at{};
  if (cudaPointerGetAttributes(&at, p) != cudaSuccess) cudaGetLastError();
  const bool found = at.type == cudaMemoryTypeDevice || at.type == cudaMemoryTypeManaged;
  if (found && !on_device) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: address %p is in GPU memory, expected host memory", name, p);
  }
  if (!found && on_device) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: address %p is not in GPU memory, expected memory of cuda:%d as of the engine",
         name, p, ordinal);
  }
  if (at.type == cudaMemoryTypeDevice && at.device != ordinal) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: lies in memory of cuda:%d, expected that of cuda:%d", name, at.device, ordinal);
  }
}

void check_memory(int ordinal, std::initializer_list<NamedTensor> tensors) {
  for (const NamedTensor& tensor : tensors) {
    if (tensor.t.data == nullptr) continue;
    check_side(ordinal, tensor.name, tensor.t.data, true);
    // Broadcast ones may be of any size: what is computed from it must not wrap around.
    int64_t bytes = 16;
    for (int d = 0; d < tensor.t.rank; ++d) bytes = checked_mul(bytes, tensor.t.shape[d]);
  }
}

Array array_of(const m4j_tensor& t, std::initializer_list<int> dims) {
  Array a;
  if (t.data == nullptr) return a;
  a.dtype = static_cast<DType>(t.dtype);
  a.data = t.data;
  int d = kCopyRank - static_cast<int>(dims.size());
  for (int dim : dims) {
    a.shape[d] = t.shape[dim];
    a.strides[d++] = t.strides[dim];
  }
  return a;
}

std::vector<Part> cut(int64_t batch, int64_t length, int64_t row_bytes, int64_t most_tokens) {
  int64_t sequences = std::min(batch, kMostSequences), tokens = std::min(length, most_tokens);
  if (tokens < length) sequences = 1;
  if (row_bytes > 0 && length <= kScratchBytes / row_bytes) {
    sequences = std::clamp(kScratchBytes / row_bytes / length, int64_t{1}, sequences);
  } else if (row_bytes > 0) {
    sequences = 1;
    tokens = std::min(tokens, std::max(kScratchBytes / row_bytes / kCutTokens, int64_t{1}) * kCutTokens);
  }
  std::vector<Part> parts;
  for (int64_t b = 0; b < batch; b += sequences) {
    for (int64_t t = 0; t < length; t += tokens) {
      parts.push_back({b, std::min(sequences, batch - b), t, std::min(tokens, length - t)});
    }
  }
  return parts;
}

Part largest(const std::vector<Part>& parts) { return parts.front(); }

Rows::Rows(const m4j_tensor& t, int batch, int row, int outer, int inner, DType type) : type_(type) {
  if (t.data == nullptr) return;
  view_.dtype = static_cast<DType>(t.dtype);
  view_.data = t.data;
  const int dims[] = {batch, row, outer, inner};
  for (int d = 0; d < kCopyRank; ++d) {
    if (dims[d] == kNone) continue;
    view_.shape[d] = t.shape[dims[d]];
    view_.strides[d] = t.strides[dims[d]];
  }
  const auto& [B, L, O, I] = view_.shape;
  const auto& [by_batch, by_row, by_outer, by_inner] = view_.strides;
  const int64_t columns = O * I;
  ld_ = L > 1 ? by_row : B > 1 ? by_batch : columns;
  packed_ = view_.dtype != type_ || (I > 1 && by_inner != 1) || (O > 1 && by_outer != I) || ld_ < columns ||
            (B > 1 && by_batch != L * ld_);
  if (packed_) pack();
}

void Rows::pack() {
  packed_ = view_.data != nullptr;
  ld_ = round_up(view_.shape[2] * view_.shape[3], kRowAlignment);
}

void Rows::take(Carver& carver, const Part& largest) {
  if (packed_) scratch_ = carver.take<void>(dtype_bytes(type_, checked_mul(largest.rows(), ld_)));
}

Array Rows::whole(const Part& part) const {
  return slice(slice(view_, 0, part.first, part.sequences), 1, part.begin, part.tokens);
}

Array Rows::packed_part(const Part& part) const {
  Array a = whole(part);
  a.dtype = type_;
  a.data = scratch_;
  const int64_t strides[] = {part.tokens * ld_, ld_, view_.shape[3], 1};
  std::copy(std::begin(strides), std::end(strides), a.strides);
  return a;
}

void* Rows::at(const Part& part) const {
  if (view_.data == nullptr || packed_) return scratch_;
  const int64_t row = part.first * view_.shape[1] + part.begin;
  return static_cast<char*>(view_.data) + dtype_bytes(type_, row * ld_);
}

void Rows::load(const Part& part, cudaStream_t stream) const {
  if (packed_) copy(whole(part), packed_part(part), stream);
}

void Rows::store(const Part& part, cudaStream_t stream) const {
  if (packed_) copy(packed_part(part), whole(part), stream);
}

Parameter::Parameter(const m4j_tensor& t, std::initializer_list<int> dims)
    : view_(array_of(t, dims)), packed_(t.data != nullptr && !is_contiguous(view_)) {}

void Parameter::take(Carver& carver) {
  if (packed_) scratch_ = carver.take<float>(count(view_) * 4);
}

void Parameter::load(cudaStream_t stream) const {
  if (packed_) copy(view_, contiguous(view_, DType::kF32, scratch_), stream);
}

const float* Parameter::data() const { return packed_ ? scratch_ : static_cast<const float*>(view_.data); }

Slots::Slots(const m4j_tensor& initial, const m4j_tensor& last, std::initializer_list<int> dims, int64_t floats)
    : stride_(round_up(floats, kRowAlignment)) {
  // The batch is dimension 0 of the arrays, wherever the others begin.
  const auto view = [&](const m4j_tensor& t) {
    Array a = array_of(t, dims);
    const int batch = kCopyRank - static_cast<int>(dims.size());
    if (batch > 0) {
      std::swap(a.shape[0], a.shape[batch]);
      std::swap(a.strides[0], a.strides[batch]);
    }
    return a;
  };
  initial_ = view(initial);
  last_ = view(last);
}

void Slots::take(Carver& carver, const Part& largest) {
  scratch_ = carver.take<float>(checked_mul(largest.sequences, checked_mul(stride_, 4)));
}

Array Slots::slots_of(const Array& like, const Part& part) const {
  Array a = contiguous(like, DType::kF32, scratch_);
  a.shape[0] = part.sequences;
  a.strides[0] = stride_;
  return a;
}

void Slots::load(const Part& part, cudaStream_t stream) const {
  if (initial_.data == nullptr) {
    check(cudaMemsetAsync(scratch_, 0, static_cast<std::size_t>(part.sequences * stride_ * 4), stream), "cudaMemset");
  } else {
    copy(slice(initial_, 0, part.first, part.sequences), slots_of(initial_, part), stream);
  }
}

void Slots::store(const Part& part, cudaStream_t stream) const {
  if (last_.data != nullptr) copy(slots_of(last_, part), slice(last_, 0, part.first, part.sequences), stream);
}

}  // namespace m4j::cuda
