// Where the decode kernel keeps what it works with: vectors that blocks hand to each other, shared memory, the ring.
#pragma once

#include <algorithm>

#include "ops/cuda/chain.cuh"
#include "ops/cuda/decode_step.h"
#include "ops/cuda/exchange.cuh"

namespace m4j::cuda {

constexpr int kThreads = kWarp * kWarps;  // that multiply
constexpr int kFinishers = 2 * kWarp;     // threads that make of a product's sums what others wait for
constexpr int kMinStages = 4;  // of the ring
// Of a tile, and on their way to a block, unless a single tile is more. What is on its way holds up what blocks hand to
// each other, and each tile costs instructions: found by measuring (bench/NOTES-gpu.md).
struct FetchBytes {
  int tile, on_the_way;
};
constexpr FetchBytes kFetch = {48 << 10, 96 << 10};
constexpr FetchBytes kFetchAwaited = {48 << 10, 48 << 10};  // where other blocks wait for the sums: x_proj, out_proj
constexpr FetchBytes kFetchMamba2In = {96 << 10, 64 << 10};  // in_proj
constexpr int kMaxConv = 4;    // d_conv
constexpr int kSums = 128;     // of rows and tokens that a block adds up at a time, at most
constexpr int kLanes = 8;      // that share a row of the SSD's state, or columns of x_proj
constexpr int kRowsOfWarp = kWarp / kLanes;
constexpr int kScanLanes = 4;  // that share a channel of the scan
constexpr int kScanChannels = kThreads / kScanLanes;   // at a time
constexpr int kScanStates = 4;                         // of a lane
constexpr int kScanRank = 2 * 8 * kScanLanes;          // columns of dt_proj that a channel's lanes take at a time
constexpr int kMaxScanState = kScanStates * kScanLanes;
constexpr int kMaxRank = 256;  // padded dt_rank
constexpr int kProducts = 6;   // kinds of matrices
constexpr int kMaxColumns = 64;            // of x_proj's transpose that arrive together
constexpr int kMaxHandedOver = 4096;       // T E for several tokens: beyond it handing over takes longer than launches

// Vectors that blocks hand to each other; see exchange.cuh.
struct Exchange {
  Packet* x;       // [T, D] residual stream
  Packet* parts;   // Mamba-1: [small_size, T, part_count] sums of x_proj over the channels of one block each
  Packet* small;   // [T, small_size]
  Packet* y;       // [T, E] gated output of the scan
  unsigned* done;  // blocks that are done
};

// Where things lie in shared memory, in bytes, and how the ring of weights is divided.
struct SharedLayout {
  int products, rows, sums, parts_of_squares, squares, u, z, residual, small, fragments, barriers, ring;
  int warp_chunks;  // of fragments, for each warp
  int stages, stage_bytes;
  Tiles model, inner;  // of rows of d_model or d_inner columns
  Tiles x_proj, dt_proj;  // Mamba-1: of rows of x_proj's transpose, of dt_proj
  Tiles state;            // Mamba-2
};

// This block's part of a matrix of each layer.
struct Product {
  const void* matrix;       // of the first
  int64_t layer_bytes;
  int first, begin, count;  // first row of all blocks' part, then of this block's from there
  int columns;
  Tiles tiles;
};

// What every block needs of a layer besides its own channels: dt, B, C of Mamba-1; B, C, dt of Mamba-2.
__host__ __device__ inline int small_size(const DecodeStepArgs& a) {
  return a.mamba2 ? 2 * a.n_groups * a.d_state + a.n_heads : a.dt_rank_padded + 2 * a.d_state;
}

// Zeros behind dt in shared memory, so that all lanes of the scan have equally many columns.
__host__ __device__ inline int rank_padding(const DecodeStepArgs& a) {
  return a.mamba2 ? 0 : (a.dt_rank_padded + kScanRank - 1) / kScanRank * kScanRank - a.dt_rank_padded;
}

// Floats from token to token of it in shared memory, where it is read 16 bytes at a time.
__host__ __device__ inline int small_stride(const DecodeStepArgs& a) {
  return (rank_padding(a) + small_size(a) + 3) / 4 * 4;
}

// log2 of the distance between rows where the sums of all tokens lie together.
__host__ __device__ inline int tokens_shift(int tokens) { return tokens <= 2 ? tokens - 1 : 2; }

// Blocks that have channels, and so a part of each sum of x_proj. Where not all have some, those that do have one each.
__host__ __device__ inline int part_count(const DecodeStepArgs& a, int blocks) {
  return a.d_inner < blocks ? a.d_inner : blocks;
}

// Mamba-2's blocks hand on the residual stream and y two numbers at a time, in one packet if 24 bits of each are
// enough. In Mamba-1 that was slower.
__host__ __device__ constexpr int packets_of_two(bool mamba2, bool wide) { return mamba2 && !wide ? 1 : 2; }
__host__ __device__ constexpr int share_unit(bool mamba2) { return mamba2 ? 2 : 1; }

// Bytes of workspace.
inline int64_t layout(const DecodeStepArgs& a, int blocks, Exchange* e) {
  int64_t used = 256;
  e->done = static_cast<unsigned*>(a.workspace);
  const auto take = [&](int64_t elements) {
    auto* p = reinterpret_cast<Packet*>(static_cast<char*>(a.workspace) + used);
    used += (a.tokens * elements * static_cast<int64_t>(sizeof(Packet)) + 255) / 256 * 256;
    return p;
  };
  const int of_two = packets_of_two(a.mamba2, a.dtype == DType::kF32);
  e->x = take(a.d_model / 2 * of_two);
  e->parts = take(a.mamba2 ? 0 : int64_t{small_size(a)} * part_count(a, blocks));
  e->small = take(small_size(a));
  e->y = take(a.d_inner / 2 * of_two);
  return used;
}

struct Device {
  int cooperative, multiprocessors, shared_bytes;

  static Device current() {
    return {device_attribute(cudaDevAttrCooperativeLaunch), device_attribute(cudaDevAttrMultiProcessorCount),
            device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  }
};

// stages is 0 if the model does not fit.
inline SharedLayout shared_layout(const DecodeStepArgs& a, const Device& device) {
  SharedLayout l{};
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    const auto offset = static_cast<int>(used);
    used += (bytes + 127) / 128 * 128;
    return offset;
  };
  const int shift = tokens_shift(a.tokens), element = static_cast<int>(dtype_bytes(a.dtype, 1));
  const int unit = share_unit(a.mamba2);
  const auto largest_share = [&](int n) {
    return (n / unit + device.multiprocessors - 1) / device.multiprocessors * unit << shift;
  };
  const int groups = a.mamba2 ? a.n_groups : 1;
  const auto warp_chunks = [](int columns, int parts) {
    return (chunks_of(columns / parts) + warps_of_group(parts) - 1) / warps_of_group(parts);
  };
  l.warp_chunks = std::max(warp_chunks(a.d_model, 1), warp_chunks(a.d_inner, groups));
  l.products = take(kProducts * static_cast<int64_t>(sizeof(Product)));
  l.rows = take(a.mamba2 ? (largest_share(a.d_inner) >> shift) * 8 : 0);
  l.sums = take(2 * kWarps * kSums * 4);
  l.parts_of_squares = take(a.tokens * kThreads * 4);
  l.squares = take(kFinishers / kWarp * kWarps * kMaxDecodeTokens * 4);
  l.u = take(largest_share(a.d_inner) * 4);
  l.z = take(largest_share(a.d_inner) * 4);
  l.residual = take(largest_share(a.d_model) * 4);
  l.small = take(int64_t{a.tokens} * small_stride(a) * 4);
  l.fragments = take(int64_t{kWarps} * l.warp_chunks * a.tokens * kFragment);
  l.barriers = take(kMaxStages * 8 + kWarps * 4);
  if (used > device.shared_bytes) return l;
  l.ring = static_cast<int>(used);

  const int model = row_pitch(a.d_model * element), inner = row_pitch(a.d_inner * element);
  const int x_proj = a.mamba2 ? 0 : row_pitch(small_size(a) * element);
  const int dt_proj = a.mamba2 ? 0 : row_pitch(a.dt_rank_padded * element);
  const int state = a.mamba2 ? row_pitch(static_cast<int>(dtype_bytes(a.state_type, a.d_state))) : 0;
  l.stage_bytes = (std::max({2 * model, inner, x_proj, dt_proj, state}) + 127) / 128 * 128;
  l.stages = std::min(kMaxStages, (device.shared_bytes - l.ring) / l.stage_bytes);
  if (l.stages < kMinStages) l.stages = 0;
  const auto tiles = [&](int pitch, int most, const FetchBytes& bytes) {
    Tiles t{0, most, 1};
    while (t.shift < kMaxRowsShift && pitch << (t.shift + 1) <= l.stage_bytes) ++t.shift;
    // A divisor of all passes, and no more than half of the ring.
    while (t.rows > 2 && (t.rows > l.stages / 2 << t.shift || t.rows * pitch > bytes.tile)) t.rows /= 2;
    t.ahead = std::clamp(bytes.on_the_way / (t.rows * pitch), 1, kMaxStages / 2);
    return t;
  };
  l.model = tiles(model, kTileRows, a.mamba2 ? kFetchMamba2In : kFetch);
  l.inner = tiles(inner, kTileRows, kFetchAwaited);
  if (a.mamba2) {
    l.state = tiles(state, kWarps * kRowsOfWarp, kFetch);
  } else {
    l.x_proj = tiles(x_proj, kMaxColumns, kFetchAwaited);
    l.dt_proj = tiles(dt_proj, kScanChannels, kFetch);
  }
  return l;
}

}  // namespace m4j::cuda
