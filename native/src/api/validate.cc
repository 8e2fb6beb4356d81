#include "api/validate.h"

#include <cstdio>
#include <cstdlib>

#include "ops/tensor.h"
#include "runtime/failure.h"

namespace m4j {
namespace {

// "[B=2, E=24, L=7]" or "[2, 24, 7]"
struct ShapeText {
  explicit ShapeText(std::initializer_list<Dim> shape) {
    for (const Dim& d : shape) {
      if (d.size == kAny) {
        append("%s", d.name);
      } else {
        append("%s=%lld", d.name, static_cast<long long>(d.size));
      }
    }
    close();
  }
  explicit ShapeText(const m4j_tensor& t) {
    for (int i = 0; i < t.rank; ++i) append("%lld", static_cast<long long>(t.shape[i]));
    close();
  }
  char text[256] = "[";

 private:
  template <typename... Values>
  void append(const char* format, Values... values) {
    if (used_ > 1) used_ += std::snprintf(text + used_, sizeof text - used_, ", ");
    used_ += std::snprintf(text + used_, sizeof text - used_, format, values...);
  }
  void close() { std::snprintf(text + used_, sizeof text - used_, "]"); }
  std::size_t used_ = 1;
};

// Offsets of the first and one past the last byte, relative to data.
struct Extent {
  int64_t begin, end;
};

const char* const kTypeNames[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0"};

// Of the types that are not quantised.
int64_t element_size(const m4j_tensor& t) { return dtype_bytes(dtype_of(t), 1); }

bool find_extent(const m4j_tensor& t, Extent* extent) {
  if (is_quantised(dtype_of(t))) {  // no gaps
    const int64_t count = element_count(t);
    if (count > INT64_MAX / 2) return false;
    *extent = {0, dtype_bytes(dtype_of(t), count)};
    return true;
  }
  int64_t low = 0, high = 0;  // in elements
  for (int i = 0; i < t.rank; ++i) {
    int64_t reach;
    if (t.shape[i] == 0) {
      *extent = {0, 0};
      return true;
    }
    if (__builtin_mul_overflow(t.shape[i] - 1, t.strides[i], &reach)) return false;
    if (__builtin_add_overflow(reach < 0 ? low : high, reach, reach < 0 ? &low : &high)) return false;
  }
  return !__builtin_mul_overflow(low, element_size(t), &extent->begin) &&
         !__builtin_add_overflow(high, 1, &high) && !__builtin_mul_overflow(high, element_size(t), &extent->end);
}

// Addresses of the first and one past the last byte of a checked tensor.
struct Range {
  explicit Range(const m4j_tensor& t) {
    Extent extent{0, 0};
    find_extent(t, &extent);
    begin = reinterpret_cast<intptr_t>(t.data) + extent.begin;
    end = reinterpret_cast<intptr_t>(t.data) + extent.end;
  }
  int64_t begin, end;
};

bool overlap(const Range& a, const Range& b) { return a.begin < b.end && b.begin < a.end; }

bool is_dense(const m4j_tensor& t) {
  const Range range(t);
  return is_quantised(dtype_of(t)) || (range.end - range.begin) / element_size(t) == element_count(t);
}

bool same_elements(const m4j_tensor& a, const m4j_tensor& b) {
  if (a.data != b.data || a.rank != b.rank || a.dtype != b.dtype) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] != b.shape[i] || (a.shape[i] > 1 && a.strides[i] != b.strides[i])) return false;
  }
  return true;
}

}  // namespace

bool check_tensor(Tensor tensor, std::initializer_list<Dim> shape, Types types, Presence presence) {
  const m4j_tensor& t = tensor.t;
  if (t.data == nullptr) {
    if (presence == Presence::kOptional) return false;
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: is absent (data NULL), expected shape %s", tensor.name, ShapeText(shape).text);
  }
  const char* const expected = types == Types::kF32        ? "F32"
                               : types == Types::kAnyFloat ? "F32, F16 or BF16"
                                                           : "F32, F16, BF16, Q8_0 or Q4_0";
  if (t.dtype < M4J_F32 || t.dtype > M4J_Q4_0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: unknown dtype %d, expected %s", tensor.name, t.dtype, expected);
  }
  const bool quantised = is_quantised(dtype_of(t));
  if ((types == Types::kF32 && t.dtype != M4J_F32) || (types == Types::kAnyFloat && quantised)) {
    fail(M4J_ERR_UNSUPPORTED, "%s: dtype is %s, expected %s", tensor.name, kTypeNames[t.dtype], expected);
  }
  const int rank = static_cast<int>(shape.size());
  if (t.rank != rank) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: rank is %d, expected %d for shape %s", tensor.name, t.rank, rank,
         ShapeText(shape).text);
  }
  const Dim* dims = shape.begin();
  for (int i = 0; i < rank; ++i) {
    if (dims[i].size == kAny ? t.shape[i] < 1 : t.shape[i] != dims[i].size) {
      fail(M4J_ERR_INVALID_ARGUMENT, "%s: shape is %s, expected %s", tensor.name, ShapeText(t).text,
           ShapeText(shape).text);
    }
  }
  if (quantised) {
    check_contiguous(tensor);
    if (t.shape[rank - 1] % kQuantBlock != 0) {
      fail(M4J_ERR_INVALID_ARGUMENT, "%s: rows of %lld weights, expected a multiple of %lld for %s", tensor.name,
           static_cast<long long>(t.shape[rank - 1]), static_cast<long long>(kQuantBlock), kTypeNames[t.dtype]);
    }
  } else if (reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(element_size(t)) != 0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: address %p is not aligned to its element of %lld bytes", tensor.name, t.data,
         static_cast<long long>(element_size(t)));
  }
  Extent extent;
  int64_t end;
  const int64_t address = static_cast<int64_t>(reinterpret_cast<intptr_t>(t.data));
  if (!find_extent(t, &extent) || __builtin_add_overflow(address, extent.begin, &end) ||
      __builtin_add_overflow(address, extent.end, &end)) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: shape %s with its strides reaches beyond 64-bit addresses", tensor.name,
         ShapeText(t).text);
  }
  return true;
}

void check_same_type(Tensor tensor, Tensor other) {
  if (tensor.t.data == nullptr || tensor.t.dtype == other.t.dtype) return;
  fail(M4J_ERR_UNSUPPORTED, "%s: dtype is %s, expected %s as %s", tensor.name, kTypeNames[tensor.t.dtype],
       kTypeNames[other.t.dtype], other.name);
}

void check_contiguous(Tensor tensor) {
  int64_t expected = 1;
  for (int i = tensor.t.rank - 1; i >= 0; --i) {
    if (tensor.t.shape[i] > 1 && tensor.t.strides[i] != expected) {
      fail(M4J_ERR_INVALID_ARGUMENT, "%s: stride of dimension %d is %lld, expected %lld (contiguous)", tensor.name, i,
           static_cast<long long>(tensor.t.strides[i]), static_cast<long long>(expected));
    }
    if (__builtin_mul_overflow(expected, tensor.t.shape[i], &expected)) expected = INT64_MAX;
  }
}

void check_rows_contiguous(Tensor tensor) {
  if (tensor.t.shape[1] > 1 && tensor.t.strides[1] != 1) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s: stride of dimension 1 is %lld, expected 1 (rows contiguous)", tensor.name,
         static_cast<long long>(tensor.t.strides[1]));
  }
}

void check_distinct_elements(Tensor tensor) {
  const m4j_tensor& t = tensor.t;
  const auto stride = [&](int i) { return std::abs(t.strides[i]); };
  int order[M4J_MAX_RANK];  // dimensions by ascending stride
  int count = 0;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] == 0) return;
    if (t.shape[i] == 1) continue;
    int place = count++;
    for (; place > 0 && stride(order[place - 1]) > stride(i); --place) order[place] = order[place - 1];
    order[place] = i;
  }
  int64_t reach = 0;  // of the dimensions so far, in elements
  for (int i = 0; i < count; ++i) {
    if (stride(order[i]) <= reach) {
      fail(M4J_ERR_INVALID_ARGUMENT, "%s: elements of this output share memory: stride of dimension %d is %lld",
           tensor.name, order[i], static_cast<long long>(t.strides[order[i]]));
    }
    reach += (t.shape[order[i]] - 1) * stride(order[i]);
  }
}

void check_disjoint(Tensor output, Tensor other) {
  if (output.t.data == nullptr || other.t.data == nullptr) return;
  if (!overlap(Range(output.t), Range(other.t))) return;
  if (output.t.data != other.t.data && !(is_dense(output.t) && is_dense(other.t))) return;
  fail(M4J_ERR_INVALID_ARGUMENT, "%s: this output overlaps %s", output.name, other.name);
}

void check_same_or_disjoint(Tensor output, Tensor input) {
  if (!same_elements(output.t, input.t)) check_disjoint(output, input);
}

void check_flag(int32_t value, const char* name) {
  if (value != 0 && value != 1) fail(M4J_ERR_INVALID_ARGUMENT, "%s: is %d, expected 0 or 1", name, value);
}

}  // namespace m4j
