#include "cuda/states.h"

namespace m4j::cuda {

States::States(Model& model_, int64_t max_slots)
    : model(model_),
      stride_(align(model_.slot_floats() * 4) / 4),
      memory_(stride_ * 4, max_slots == 0 ? 0 : max_slots + 1, &model_.engine.bytes) {
  reserve(1);
  zero(0);
}

States::~States() {
  cudaStreamSynchronize(model.engine.stream);
  forget_graphs();
}

void States::forget_graphs() {
  for (const auto& [key, graph] : graphs) {
    if (graph.exec != nullptr) cudaGraphExecDestroy(graph.exec);  // not so after a failed capture
  }
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
  model.engine.transfers.download(host, slot(i), slot_bytes(), model.engine.stream);
}

void States::write(int64_t i, const float* host) {
  model.engine.transfers.upload(slot(i), host, slot_bytes(), model.engine.stream);
  model.engine.wait();
}

}  // namespace m4j::cuda
