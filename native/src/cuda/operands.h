// Tensors of callers as the kernels take them: rows of a ragged batch, in place where they lie so, else packed into
// workspace and back. Batches are cut into parts, so that what is packed at once stays small.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "cuda/memory.h"
#include "mamba4j.h"
#include "ops/cuda/copy.h"
#include "ops/cuda/cuda_ops.h"
#include "runtime/checked.h"

namespace m4j::cuda {

struct NamedTensor {
  const char* name;
  const m4j_tensor& t;
};
// Fails unless all tensors that are present lie in the memory of device `ordinal`, and are of sizes to compute with.
void check_memory(int ordinal, std::initializer_list<NamedTensor> tensors);
// Fails unless p lies in the memory of device `ordinal`, or, for another side, in the host's.
void check_side(int ordinal, const char* name, const void* p, bool on_device);

// The dimensions of t in the given order.
Array array_of(const m4j_tensor& t, std::initializer_list<int> dims);

// Walks over an op's buffers twice: once to measure (base null), once to hand them out.
class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}
  template <typename T>
  T* take(int64_t bytes) {
    char* result = base_ == nullptr ? nullptr : base_ + used_;
    used_ = checked_add(used_, align(bytes));
    return reinterpret_cast<T*>(result);
  }
  int64_t used() const { return used_; }

 private:
  char* const base_;
  int64_t used_ = 0;
};

// What an op computes at once: some sequences whole, or some tokens of one.
struct Part {
  int64_t first, sequences;
  int64_t begin, tokens;
  int64_t rows() const { return sequences * tokens; }
};
// row_bytes: what a token takes packed. Parts along time begin at multiples of all chunk sizes.
std::vector<Part> cut(int64_t batch, int64_t length, int64_t row_bytes, int64_t most_tokens = INT64_MAX);
// The largest of them in rows and in sequences.
Part largest(const std::vector<Part>& parts);

// An input or output [B, L, columns], the columns in one or two dimensions, as rows of `type`.
class Rows {
 public:
  static constexpr int kNone = -1;
  // Dimensions of t; batch and outer may be kNone.
  Rows(const m4j_tensor& t, int batch, int row, int outer, int inner, DType type);
  Rows(const m4j_tensor& t, int batch, int row, int outer, int inner)
      : Rows(t, batch, row, outer, inner, static_cast<DType>(t.dtype)) {}

  bool packed() const { return packed_; }
  void pack();  // in any case
  int64_t packed_row_bytes() const { return packed_ ? dtype_bytes(type_, ld_) : 0; }
  int64_t ld() const { return ld_; }
  DType type() const { return type_; }

  void take(Carver& carver, const Part& largest);
  // The part's rows, once load has been called for it or until store is; null if the tensor is absent.
  void* at(const Part& part) const;
  void load(const Part& part, cudaStream_t stream) const;
  void store(const Part& part, cudaStream_t stream) const;

 private:
  Array whole(const Part& part) const;
  Array packed_part(const Part& part) const;
  const DType type_;
  Array view_;  // [B, L, outer, inner]
  int64_t ld_ = 0;
  bool packed_ = false;
  void* scratch_ = nullptr;
};

// A float32 parameter with its dimensions in the order that a kernel wants, without gaps.
class Parameter {
 public:
  Parameter(const m4j_tensor& t, std::initializer_list<int> dims);
  void take(Carver& carver);
  void load(cudaStream_t stream) const;
  const float* data() const;  // null if the tensor is absent

 private:
  Array view_;
  bool packed_ = false;
  float* scratch_ = nullptr;
};

// Float32 states or windows of the sequences of a part, in slots 0, 1, ...
class Slots {
 public:
  // The dimensions of both, the batch first, in the kernel's order.
  Slots(const m4j_tensor& initial, const m4j_tensor& last, std::initializer_list<int> dims, int64_t floats);
  void take(Carver& carver, const Part& largest);
  void load(const Part& part, cudaStream_t stream) const;   // zeros without an initial state
  void store(const Part& part, cudaStream_t stream) const;  // if it is wanted
  float* data() const { return scratch_; }
  int64_t stride() const { return stride_; }

 private:
  Array slots_of(const Array& like, const Part& part) const;
  Array initial_, last_;
  const int64_t stride_;  // floats
  float* scratch_ = nullptr;
};

}  // namespace m4j::cuda
