#include "cuda/states.h"

#include <vector>

#include "ops/half.h"
#include "runtime/checked.h"

namespace m4j::cuda {

States::States(Model& model_, int64_t max_slots)
    : model(model_),
      ssm_type_(model_.config.ssm_type()),
      stride_(align(model_.config.state_bytes())),
      memory_(stride_, max_slots == 0 ? 0 : checked_add(max_slots, 1), &model_.engine.bytes) {
  reserve(1);
  zero(0);
}

States::~States() {
  cudaStreamSynchronize(model.engine.stream);
  forget_graphs();
}

void States::forget(Graph& graph) {
  cudaStreamSynchronize(model.engine.stream);  // a step without logits may still be ending
  // There are none after a failed capture.
  if (graph.exec != nullptr) cudaGraphExecDestroy(graph.exec);
  if (graph.graph != nullptr) cudaGraphDestroy(graph.graph);
  graph = {};
}

void States::forget_graphs() {
  for (auto& [key, graph] : graphs) forget(graph);
  graphs.clear();
}

void States::zero(int64_t i) {
  check(cudaMemsetAsync(slot(i), 0, static_cast<std::size_t>(slot_bytes()), model.engine.stream), "reset of a slot");
  model.engine.wait();
}

void States::copy(int64_t target, int64_t source) {
  check(cudaMemcpyAsync(slot(target), slot(source), static_cast<std::size_t>(slot_bytes()), cudaMemcpyDeviceToDevice,
                        model.engine.stream),
        "copy of a slot");
  model.engine.wait();
}

void States::read(int64_t i, float* host) {
  Transfers& transfers = model.engine.transfers;
  const int64_t conv = model.config.conv_state(), ssm = model.config.ssm_state();
  if (ssm_type_ == DType::kF32) return transfers.download(host, slot(i), slot_bytes(), model.engine.stream);
  transfers.download(host, slot(i), conv * 4, model.engine.stream);
  std::vector<uint16_t> stored(static_cast<std::size_t>(ssm));
  transfers.download(stored.data(), ssm_of(i), ssm * 2, model.engine.stream);
  for (int64_t k = 0; k < ssm; ++k) host[conv + k] = bf16_to_f32(stored[static_cast<std::size_t>(k)]);
}

void States::write(int64_t i, const float* host) {
  Transfers& transfers = model.engine.transfers;
  const int64_t conv = model.config.conv_state(), ssm = model.config.ssm_state();
  if (ssm_type_ == DType::kF32) {
    transfers.upload(slot(i), host, slot_bytes(), model.engine.stream);
  } else {
    std::vector<uint16_t> rounded(static_cast<std::size_t>(ssm));
    for (int64_t k = 0; k < ssm; ++k) rounded[static_cast<std::size_t>(k)] = f32_to_bf16(host[conv + k]);
    transfers.upload(slot(i), host, conv * 4, model.engine.stream);
    transfers.upload(ssm_of(i), rounded.data(), ssm * 2, model.engine.stream);
  }
  model.engine.wait();
}

}  // namespace m4j::cuda
