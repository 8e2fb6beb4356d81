// The SSD of ssd_chunk_half.cuh with Hopper's products, which read their right operands from shared memory themselves.
// A group of four warps for each slab does the products; one more fetches the next chunk and computes its decays
// meanwhile.
#pragma once

#include "ops/cuda/ssd_chunk_half.cuh"
#include "ops/cuda/wgmma.cuh"

namespace m4j::cuda::ssd {

template <typename T, int kN, Pass kPass, int kSlabs>
struct HopperShared : HalfShared<StoredDecays<T>, kN, kPass, kSlabs, 2> {
  static constexpr bool kGated = kPass == Pass::kGatedOutputs;
  alignas(128) unsigned char Z[2][kSlabs][kGated ? kPanelBytes : 16];
  float squares[2][kSlabs][kSlabThreads / 32][kGated ? kChunk : 1];  // of a chunk, summed over the rows of a warp
};

// The same in all lanes, so that the compiler keeps it where products want their descriptors.
template <typename V>
__device__ V uniform(V v) { return __shfl_sync(~0u, v, 0); }

// A group's share of the columns i of S^T = B C^T.
template <int kSlabs>
constexpr int kShareTiles = (kChunk / 8 + kSlabs - 1) / kSlabs;

template <typename T, int kN, int kTiles>
__device__ __forceinline__ void begin_S(float (&s)[kTiles][4], uint64_t b, uint64_t c) {
  pin(s);
  products_begin();
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) product_rows<T>(s, b + columns_offset(k), c + columns_offset(k), k > 0);
  products_commit();
}

// The decays of all heads turn S^T into their M^T. Where all j > i that stays zero.
template <typename T, int kN, Pass kPass, int kSlabs>
__device__ __forceinline__ void store_M(const float (&s)[kShareTiles<kSlabs>][4],
                                        HopperShared<T, kN, kPass, kSlabs>& shared, int stage, int which,
                                        int warp, int lane) {
  const int j = warp * 16 + lane / 4;
#pragma unroll
  for (int head = 0; head < kSlabs; ++head) {
    const StoredDecays<T>& d = shared.decays[stage][head];
    const float cum[2] = {d.cum[j], d.cum[j + 8]}, dt[2] = {d.dt[j], d.dt[j + 8]};
#pragma unroll
    for (int tile = 0; tile < kShareTiles<kSlabs>; ++tile) {
      const int i_tile = which * kShareTiles<kSlabs> + tile, i = i_tile * 8 + lane % 4 * 2;
      if (i_tile >= kChunk / 8 || i_tile / 2 < warp) continue;
      unsigned char* M = shared.M[head] + tile_offset(j, i_tile) + lane % 4 * 4;
      const float2 cum_i = *reinterpret_cast<const float2*>(&d.cum[i]);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float m0 = s[tile][2 * row] * dt[row] * exp2_fast(cum_i.x - cum[row]);
        float m1 = s[tile][2 * row + 1] * dt[row] * exp2_fast(cum_i.y - cum[row]);
        if (i_tile / 2 == warp) {
          const int ahead = j + 8 * row - i;  // of i
          const float D = shared.heads[head].D;
          m0 = ahead < 0 ? m0 : ahead == 0 ? m0 + D : 0;
          m1 = ahead < 1 ? m1 : ahead == 1 ? m1 + D : 0;
        }
        *reinterpret_cast<uint32_t*>(M + row * 8 * 128) = pack<T>(m0, m1);
      }
    }
  }
}

// The state's columns 16 `first` ..., rounded to 16 bits, as the left operands of kBatch products.
template <typename T, int kBatch, int kN>
__device__ __forceinline__ void round_state(uint32_t (&h)[kBatch][4], const SlabState<kN>& state, int first) {
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float(&tile)[4] = state.h[2 * (first + k) + q / 2];
      h[k][q] = pack<T>(tile[q % 2 * 2], tile[q % 2 * 2 + 1]);
    }
  }
}

// y = h c^T for these columns, or y += h c^T if there were others.
template <typename T, int kBatch>
__device__ __forceinline__ void begin_state_product(float (&y)[kChunk / 8][4], const uint32_t (&h)[kBatch][4],
                                                    uint64_t c, int first) {
  pin(y);
  products_begin();
#pragma unroll
  for (int k = 0; k < kBatch; ++k) product_rows<T>(y, h[k], c + columns_offset(first + k), first + k > 0);
  products_commit();
}

// h += xt b, begun.
template <typename T, int kN>
__device__ __forceinline__ void begin_update(SlabState<kN>& state, const uint32_t (&xt)[kChunk / 16][4], uint64_t b) {
  constexpr int kWidth = kN == 64 ? 64 : 128;
  pin(state.h);
  products_begin();
#pragma unroll
  for (int k = 0; k < kChunk / 16; ++k) {
#pragma unroll
    for (int part = 0; part < kN / kWidth; ++part) {
      auto& h = *reinterpret_cast<float(*)[kWidth / 8][4]>(&state.h[part * kWidth / 8]);
      product<T>(h, xt[k], b + rows_offset(k) + part * (kWidth / 64 * kPanelBytes / 16), true);
    }
  }
  products_commit();
}

// Lane 4 g + t has sums of its rows for columns 8 i + 2 t and 8 i + 2 t + 1: [i]. All rows' for columns 2 lane and
// 2 lane + 1, added up in an order that no place in a chunk depends on.
__device__ __forceinline__ float2 sum_rows(const float (&sums)[kChunk / 8][2], int lane) {
  float left[kChunk / 8][2];
#pragma unroll
  for (int i = 0; i < kChunk / 8; ++i) {
    left[i][0] = sums[i][0];
    left[i][1] = sums[i][1];
  }
#pragma unroll
  for (int half = kChunk / 16; half > 0; half /= 2) {
    const int other = 4 * half;  // the lane's bit that takes the upper half
    const bool upper = (lane & other) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float given = upper ? left[i][k] : left[half + i][k], kept = upper ? left[half + i][k] : left[i][k];
        left[i][k] = kept + __shfl_xor_sync(~0u, given, other);
      }
    }
  }
  return {left[0][0], left[0][1]};
}

// y [i / 8], columns i of Y^T, becomes y * silu(z) * weight, where Z holds z as X holds x; squares[i] the sums of
// (y silu(z))^2 over the warp's rows.
template <typename T>
__device__ __forceinline__ void apply_gate(float (&y)[kChunk / 8][4], const unsigned char* Z, const float (&weight)[2],
                                           float* squares, int warp, int lane) {
  const uint32_t rows = matrix_address(shared_address(Z), lane, 1) ^ warp * 32;
  float sums[kChunk / 8][2];
#pragma unroll
  for (int k = 0; k < kChunk / 16; ++k) {
    uint32_t z[4];
    load_matrices_transposed(z, rows + k * 16 * 128);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int row = q % 2, i = 2 * k + q / 2;
      const __nv_bfloat162 half = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&z[q]), __float2bfloat162_rn(0.5f));
      const float2 gate = unpack<T>(*reinterpret_cast<const uint32_t*>(&half));
      const float v[2] = {y[i][2 * row] * silu_of_half(gate.x), y[i][2 * row + 1] * silu_of_half(gate.y)};
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        sums[i][c] = row == 0 ? v[c] * v[c] : fmaf(v[c], v[c], sums[i][c]);
        y[i][2 * row + c] = v[c] * weight[row];
      }
    }
  }
  reinterpret_cast<float2*>(squares)[lane] = sum_rows(sums, lane);
}

// The gate's part of what a group with a slab does.
struct Gate {
  float weight[2];  // of the lane's rows
  float* squares;   // of the thread's token in the chunk before; only the last kChunk threads of a group write them
  int64_t parts;

  __device__ Gate(const SsdArgs& a, const Plan& plan, const Work& work, int thread) : parts(a.heads * plan.slabs) {
    const int64_t p = work.first_row + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      weight[row] = p + 8 * row < a.headdim ? a.norm_weight[work.head * a.headdim + p + 8 * row] : 0;
    }
    const int64_t token = work.row() + thread - (kSlabThreads - kChunk);
    squares = a.squares + token * parts + work.head * plan.slabs + work.slab;
    if (!work.present) squares = nullptr;
  }

  // Of `rows` tokens, once all warps of the group are done with them.
  __device__ void store_squares(const float (&sums)[kSlabThreads / 32][kChunk], int rows, int thread) {
    const int i = thread - (kSlabThreads - kChunk);
    if (squares == nullptr || i < 0) return;
    if (i < rows) *squares = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    squares += kChunk * parts;
  }
};

struct NoGate {
  __device__ NoGate(const SsdArgs&, const Plan&, const Work&, int) {}
};

template <int kSlabs>
constexpr int kHopperThreads = (kSlabs + 1) * kSlabThreads;

// Three slabs a block, except where the states are so large that two fill the registers.
template <int kN>
constexpr int kHopperSlabs = kN == 256 ? 2 : 3;

// What the group that fetches does.
template <typename T, int kN, Pass kPass, int kSlabs>
__device__ __forceinline__ void fetch_chunks(HopperShared<T, kN, kPass, kSlabs>& shared, const SsdArgs& a,
                                             const Plan& plan, const Work& work, int thread) {
  const int warp = thread / 32, lane = thread % 32;
  const TilePieces<1, kSlabThreads> pieces(thread);
  // The group has few registers: places are kept as rows and columns, from which each chunk's addresses come anew.
  int64_t row = work.row() + pieces.row;
  const int bc_col = static_cast<int>(work.group * a.d_state) + pieces.col;
  constexpr int kNone = -8;  // nothing is read there, but it must be a multiple of 16 bytes all the same
  int x_col[kSlabs];
  Work of_warp = work;
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
    Work other;
    other.find(a, plan, slab);
    other.begin = work.begin;
    const auto col = static_cast<int>(other.head * a.headdim + other.first_row) + pieces.col;
    x_col[slab] = other.first_row + pieces.col < a.headdim ? col : kNone;
    if (slab == warp) of_warp = other;
  }
  const bool computes_decays = warp < kSlabs;
  TimeSteps<T> time_steps(a, of_warp, lane);
  Head head;
  head.load(a, of_warp);
  if (computes_decays && lane == 0) shared.heads[warp] = head;

  int64_t left = work.end - work.begin;
#pragma unroll 1
  for (int stage = 0; left > 0; stage ^= 1, left -= kChunk) {
    const int rows = chunk_rows(left);
    if (computes_decays) time_steps.load(a, rows, lane);
    const auto copy = [&](unsigned char* tile, const void* from, int64_t ld, int col, bool there) {
      pieces.copy<true>(tile, static_cast<const T*>(from) + row * ld + col, ld, there ? rows : 0, kSlab);
    };
#pragma unroll
    for (int panel = 0; panel < kN / 64; ++panel) {
      const bool there = panel * 64 + pieces.col < a.d_state;
      copy(shared.B[stage] + panel * kPanelBytes, a.B, a.ld_bc, bc_col + panel * 64, there);
      if constexpr (kPass != Pass::kStates) {
        copy(shared.C[stage] + panel * kPanelBytes, a.C, a.ld_bc, bc_col + panel * 64, there);
      }
    }
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      const int col = x_col[slab];
      copy(shared.X[stage][slab], a.x, a.ld_x, col, col >= 0);
      if constexpr (kPass == Pass::kGatedOutputs) copy(shared.Z[stage][slab], a.z, a.ld_z, col, col >= 0);
    }
    row += kChunk;
    if (computes_decays) time_steps.to_decays(shared.decays[stage][warp], head, a, rows, lane);
    wait_for_copies();
    publish_to_products();
    meet<kHopperThreads<kSlabs>>();  // the chunk is there, and the one before done with
  }
  if constexpr (kPass == Pass::kGatedOutputs) meet<kHopperThreads<kSlabs>>();  // the last one too
}

// What a group with a slab does.
template <typename T, int kN, Pass kPass, int kSlabs>
__device__ __forceinline__ void walk_chunks(HopperShared<T, kN, kPass, kSlabs>& shared, const SsdArgs& a,
                                            const Plan& plan, const Work& work, int which, int thread) {
  constexpr bool kOutputs = kPass != Pass::kStates, kGated = kPass == Pass::kGatedOutputs;
  constexpr int kBatch = kN == 256 ? 4 : 2;  // as many operands as there are registers for
  const int warp = uniform(thread / 32), lane = thread % 32;
  SlabState<kN> state;
  if (!begin_state<kN, kPass>(state, a, plan, work, thread)) return;
  OutputRows<T> out(a, work, warp, lane);
  std::conditional_t<kGated, Gate, NoGate> gate(a, plan, work, thread);
  float total = 0;
  const uint32_t M_ready = shared_address(&shared.M_ready);
  if constexpr (kOutputs) {
    for (int i = thread; i < kPanelBytes / 16; i += kSlabThreads) reinterpret_cast<uint4*>(shared.M[which])[i] = {};
    if (threadIdx.x == 0) barrier_init(M_ready, kSlabs * kSlabThreads / 32);
  }
  const int64_t tokens = work.end - work.begin;
  int64_t left = tokens;
  int stage = 0;
#pragma unroll 1
  for (; left > 0; stage ^= 1, left -= kChunk) {
    meet<kHopperThreads<kSlabs>>();
    if constexpr (kGated) {
      if (left < tokens) gate.store_squares(shared.squares[stage ^ 1][which], kChunk, thread);
    }
    const StoredDecays<T>& decays = shared.decays[stage][which];
    const uint64_t b = tile_descriptor(uniform(shared_address(shared.B[stage])));

    float y[kChunk / 8][4] = {};
    if constexpr (kOutputs) {
      float s[kShareTiles<kSlabs>][4] = {};
      uint32_t h[kBatch][4];
      const uint32_t c_tile = uniform(shared_address(shared.C[stage]));
      const uint64_t c = tile_descriptor(c_tile);
      round_state<T>(h, state, 0);
      begin_S<T, kN>(s, b, tile_descriptor(c_tile + which * (kShareTiles<kSlabs> * 8 * 128)));
      begin_state_product<T>(y, h, c, 0);
      products_wait<1>();
      pin(s);
      store_M<T, kN, kPass, kSlabs>(s, shared, stage, which, warp, lane);
      publish_to_products();
      __syncwarp();
      if (lane == 0) barrier_arrive(M_ready);
#pragma unroll
      for (int first = kBatch; first < kN / 16; first += kBatch) {
        products_wait<0>();
        pin(y);
        round_state<T>(h, state, first);
        begin_state_product<T>(y, h, c, first);
      }
    }
    const uint32_t x_rows = matrix_address(shared_address(shared.X[stage][which]), lane, 1) ^ warp * 32;
    uint32_t xt[kChunk / 16][4];
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) load_matrices_transposed(xt[k], x_rows + k * 16 * 128);
    if constexpr (kOutputs) {
      products_wait<0>();
      pin(y);
#pragma unroll
      for (int tile = 0; tile < kChunk / 8; ++tile) {
        const float2 decay = decays.from_start(tile * 8 + lane % 4 * 2);
#pragma unroll
        for (int k = 0; k < 4; ++k) y[tile][k] *= k % 2 == 0 ? decay.x : decay.y;
      }
      barrier_wait(M_ready, stage);
      const uint64_t m = tile_descriptor(uniform(shared_address(shared.M[which])));
      pin(y);
      products_begin();
#pragma unroll
      for (int k = 0; k < kChunk / 16; ++k) product<T>(y, xt[k], m + rows_offset(k), true);
      products_commit();
    } else {
      total += decays.total();
    }
    state.scale(decays.from_start(kChunk - 2).y);
    uint32_t weighted[kChunk / 16][4];
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
#pragma unroll
      for (int q = 0; q < 4; ++q) weighted[k][q] = xt[k][q];
      scale_columns<T>(weighted[k], decays, k, lane);
    }
    begin_update<T, kN>(state, weighted, b);
    if constexpr (kOutputs) {
      products_wait<1>();
      pin(y);
      if constexpr (kGated) {
        apply_gate<T>(y, shared.Z[stage][which], gate.weight, shared.squares[stage][which][warp], warp, lane);
      }
      out.template store<true>(y, shared.X[stage][which], a, chunk_rows(left), warp, lane);
    }
    products_wait<0>();
    pin(state.h);
  }
  if constexpr (kGated) {
    meet<kHopperThreads<kSlabs>>();
    gate.store_squares(shared.squares[stage ^ 1][which], chunk_rows(left + kChunk), thread);
  }
  end_state<kN, kPass>(state, a, plan, total, which, thread);
}

template <typename T, int kN, Pass kPass, int kSlabs>
__global__ void __launch_bounds__(kHopperThreads<kSlabs>, 1)
    ssd_hopper_kernel(const __grid_constant__ SsdArgs a, const __grid_constant__ Plan plan) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kFetching = kSlabs == 2 ? 40 : 32, kWalking = kSlabs == 2 ? 232 : 160;  // registers; 64 K in all
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const int thread = threadIdx.x % kSlabThreads, which = uniform(static_cast<int>(threadIdx.x) / kSlabThreads);
  let_next_start();
  wait_for_previous();
  Work work;
  if (!work.find(a, plan, which)) return;
  if (kPass == Pass::kStates && work.parts == 1) return;
  if (kPass == Pass::kStates && work.part < work.parts - 1) skip_forgotten<T>(a, plan, work);
  if (which > work.slabs) return;  // groups with slabs, and one that fetches
  const auto with_slabs = [&](auto&& body) {
    if constexpr (kSlabs == 3) {
      if (work.slabs == 2) return body(std::integral_constant<int, 2>());
    }
    body(std::integral_constant<int, kSlabs>());
  };
  if (which == work.slabs) {
    give_registers<kFetching>();
    const bool walked = kPass != Pass::kStates || work.part < work.parts - 1;
    with_slabs([&]<int kCount>(std::integral_constant<int, kCount>) {
      auto& shared = *reinterpret_cast<HopperShared<T, kN, kPass, kCount>*>(shared_memory);
      if (walked) fetch_chunks<T, kN, kPass, kCount>(shared, a, plan, work, thread);
    });
  } else {
    take_registers<kWalking>();
    with_slabs([&]<int kCount>(std::integral_constant<int, kCount>) {
      auto& shared = *reinterpret_cast<HopperShared<T, kN, kPass, kCount>*>(shared_memory);
      walk_chunks<T, kN, kPass, kCount>(shared, a, plan, work, which, thread);
    });
  }
#endif
}

}  // namespace m4j::cuda::ssd
