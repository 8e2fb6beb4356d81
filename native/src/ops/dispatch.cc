#include <cstring>

#include "ops/cpu/cpu_ops.h"
#include "ops/ops.h"

namespace m4j {
namespace {

struct Available {
  const Ops* items[kMaxCpuOps + 1];
  int count;

  Available() : count(cpu_ops(items)) { items[count++] = &reference_ops(); }
};

}  // namespace

OpsList available_ops() {
  static const Available available;
  return {available.items, available.count};
}

const Ops* find_ops(const char* name) {
  const OpsList list = available_ops();
  if (name == nullptr) return list.items[0];
  for (int i = 0; i < list.count; ++i) {
    if (std::strcmp(list.items[i]->name, name) == 0) return list.items[i];
  }
  return nullptr;
}

}  // namespace m4j
