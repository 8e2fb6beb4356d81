// The states of many sequences in GPU memory, one slot after the other at addresses that never change. Slot 0 belongs to
// the rows that only fill up a batch; sequences begin at 1. A slot holds what one of the CPU does, conv windows, then
// SSM states, these in the model's type for them.
#pragma once

#include <cstdint>
#include <map>
#include <tuple>

#include "cuda/choices.h"
#include "cuda/memory.h"
#include "cuda/model.h"
#include "cuda/slot_memory.h"

namespace m4j::cuda {

class States {
 public:
  States(Model& model, int64_t max_slots);
  ~States();
  States(const States&) = delete;
  States& operator=(const States&) = delete;

  Model& model;

  // Slots 0 ... count - 1 exist from now on.
  void reserve(int64_t count) { memory_.reserve(count); }
  int64_t slot_stride() const { return stride_ / 4; }  // floats
  int64_t ssm_stride() const { return stride_ / dtype_bytes(ssm_type_, 1); }  // elements of SSM states
  float* slot(int64_t i) const { return reinterpret_cast<float*>(memory_.data() + i * stride_); }
  float* conv(int64_t layer) const { return slot(0) + layer * model.config.layer_conv_state(); }  // of slot 0
  void* ssm(int64_t layer) const { return ssm_of(0) + dtype_bytes(ssm_type_, layer * model.config.layer_ssm_state()); }

  void zero(int64_t slot);
  void copy(int64_t target, int64_t source);
  // In float32; what is written is rounded to nearest.
  void read(int64_t slot, float* host);
  void write(int64_t slot, const float* host);

  // Decode steps captured so far; see advance.cc.
  struct Graph {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaGraphNode_t first = nullptr;  // the kernel of the step, where it is one kernel
    // Before it was captured: a graph does not survive that memory it knows is freed.
    int64_t workspace_moves = -1, choices_moves = -1;
  };
  std::map<std::tuple<int64_t, int>, Graph> graphs;  // by rows and outputs
  void forget(Graph& graph);
  void forget_graphs();
  PinnedBuffer staging;  // of the graphs: ids, segments, logits, an end
  int64_t staging_rows = 0;
  Choices choices;

 private:
  int64_t slot_bytes() const { return model.config.state_bytes(); }
  char* ssm_of(int64_t i) const { return reinterpret_cast<char*>(slot(i) + model.config.conv_state()); }
  const DType ssm_type_;
  const int64_t stride_;  // bytes
  SlotMemory memory_;
};

}  // namespace m4j::cuda
