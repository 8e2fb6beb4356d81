// States as bytes, in the layouts that mamba4j.h documents.
#pragma once

#include <cstdint>

#include "state/states.h"

namespace m4j {

int64_t snapshot_size(const Config& config);

// buffer has snapshot_size bytes, of any alignment.
void export_snapshot(const Model& model, const SlotView& slot, int64_t position, void* buffer);

// Throws M4J_ERR_MISMATCH before anything is written; returns the position.
int64_t import_snapshot(const Model& model, const SlotView& slot, const void* buffer, int64_t size);

// To conv [n_layer, C, K-1] and ssm ([n_layer, E, N] in Mamba-1, [n_layer, H, P, N] in Mamba-2), of any alignment.
void read_conv(const Config& config, const SlotView& slot, void* conv);
void read_ssm(const Config& config, const SlotView& slot, void* ssm);

}  // namespace m4j
