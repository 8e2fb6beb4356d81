// Checks of tensors from outside: what passes here is safe to read and write inside.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "mamba4j.h"

namespace m4j {

// A dimension of an expected shape; kAny takes any size from 1 on.
struct Dim {
  const char* name;
  int64_t size;
};
constexpr int64_t kAny = -1;

enum class Presence { kRequired, kOptional };
// kWeight: any float, or quantised rows of whole blocks without gaps.
enum class Types { kF32, kAnyFloat, kWeight };

struct Tensor {
  const char* name;  // for messages
  const m4j_tensor& t;
};

// Checks presence, dtype, rank, shape, alignment, and that all offsets fit into 64 bits. False if an optional tensor
// is absent.
bool check_tensor(Tensor tensor, std::initializer_list<Dim> shape, Types types = Types::kF32,
                  Presence presence = Presence::kRequired);

// Absent tensors pass.
void check_same_type(Tensor tensor, Tensor other);
// Row-major without gaps.
void check_contiguous(Tensor tensor);
// Rank 2 with rows without gaps.
void check_rows_contiguous(Tensor tensor);
// An output: no two of its elements in one place.
void check_distinct_elements(Tensor tensor);
// Fails if an output and another tensor begin at one place, or overlap and have no gaps. Views with gaps may be
// interleaved and pass. Absent tensors pass.
void check_disjoint(Tensor output, Tensor other);
// For outputs that may lie exactly on an input: the same elements in the same places, or no overlap.
void check_same_or_disjoint(Tensor output, Tensor input);

void check_flag(int32_t value, const char* name);

}  // namespace m4j
