// Refused memory on demand: the library allocates through the aligned operator new, which this binary replaces.
#pragma once

namespace m4j::test {

// While it lives, aligned allocations of this thread fail, but for the first `allowed` ones.
class FailingAlloc {
 public:
  explicit FailingAlloc(int allowed);
  ~FailingAlloc();
  FailingAlloc(const FailingAlloc&) = delete;
};

}  // namespace m4j::test
