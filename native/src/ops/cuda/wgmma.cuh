// Hopper's products of a group of four warps (sm_90a): operands in the tiles of mma.cuh or in registers, in flight
// while the warps do other work. Lane 4 g + t of warp w holds of a [64, n] sum, in tiles of eight columns, rows 16 w +
// g and 16 w + g + 8, columns 2 t and 2 t + 1, as from mma.sync.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/cuda/mma.cuh"

namespace m4j::cuda {

// Orders the warps' accesses to registers and their own writes to shared memory before the products that follow.
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Makes what this thread wrote to shared memory visible to products, after a barrier.
__device__ inline void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Keeps accesses to registers that products write on their side of products_begin and products_wait.
template <int kTiles>
__device__ __forceinline__ void pin(float (&d)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
  }
}

// A tile of mma.cuh at a multiple of 1024 bytes as an operand: rows of 128 bytes, swizzled, eight rows 1024 bytes
// apart. Rows are those of the product (its sums run along them), or what it sums over; then panels are a panel apart.
__device__ inline uint64_t tile_descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kPanels = uint64_t{kPanelBytes / 16} << 16, kRows = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kPanels | kRows | (address >> 4 & 0x3FFF);
}
// The next 16 columns, or the next 16 rows.
__device__ constexpr uint64_t columns_offset(int k) {
  return static_cast<uint64_t>(k % 4 * 32 + k / 4 * kPanelBytes) >> 4;
}
__device__ constexpr uint64_t rows_offset(int k) { return static_cast<uint64_t>(k * 16 * 128) >> 4; }

// Gives registers of this group of warps to others, or takes them. To be called by all warps of the group, and by all
// groups of a kernel, in the branches of one condition.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// __syncthreads() for warps that are at different places of a kernel.
template <int kThreads>
__device__ __forceinline__ void meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// A barrier in shared memory at which arriving and waiting are apart.
__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(barrier) : "memory");
}
#define M4J_WAIT(kind)                                                                                                \
  asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity" kind ".b64 done, [%0], %1;\n"                  \
               "@!done bra again;\n}\n" ::"r"(barrier),                                                               \
               "r"(phase)                                                                                             \
               : "memory")
// For the end of the phase, of which the number's last bit is given.
__device__ inline void barrier_wait(uint32_t barrier, int phase) { M4J_WAIT(".shared"); }
// The same where other blocks of the cluster send.
__device__ inline void barrier_wait_of_cluster(uint32_t barrier, int phase) {
  M4J_WAIT(".acquire.cluster.shared::cta");
}
#undef M4J_WAIT

// The operands of a sum of so many tiles, and their places in the text of a product.
#define M4J_TILE(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define M4J_TILES_1(d) M4J_TILE(d, 0)
#define M4J_TILES_2(d) M4J_TILES_1(d), M4J_TILE(d, 1)
#define M4J_TILES_3(d) M4J_TILES_2(d), M4J_TILE(d, 2)
#define M4J_TILES_4(d) M4J_TILES_3(d), M4J_TILE(d, 3)
#define M4J_TILES_5(d) M4J_TILES_4(d), M4J_TILE(d, 4)
#define M4J_TILES_6(d) M4J_TILES_5(d), M4J_TILE(d, 5)
#define M4J_TILES_7(d) M4J_TILES_6(d), M4J_TILE(d, 6)
#define M4J_TILES_8(d) M4J_TILES_7(d), M4J_TILE(d, 7)
#define M4J_TILES_9(d) M4J_TILES_8(d), M4J_TILE(d, 8)
#define M4J_TILES_10(d) M4J_TILES_9(d), M4J_TILE(d, 9)
#define M4J_TILES_11(d) M4J_TILES_10(d), M4J_TILE(d, 10)
#define M4J_TILES_12(d) M4J_TILES_11(d), M4J_TILE(d, 11)
#define M4J_TILES_13(d) M4J_TILES_12(d), M4J_TILE(d, 12)
#define M4J_TILES_14(d) M4J_TILES_13(d), M4J_TILE(d, 13)
#define M4J_TILES_15(d) M4J_TILES_14(d), M4J_TILE(d, 14)
#define M4J_TILES_16(d) M4J_TILES_15(d), M4J_TILE(d, 15)
#define M4J_PLACES_1 "%0, %1, %2, %3"
#define M4J_PLACES_2 M4J_PLACES_1 ", %4, %5, %6, %7"
#define M4J_PLACES_3 M4J_PLACES_2 ", %8, %9, %10, %11"
#define M4J_PLACES_4 M4J_PLACES_3 ", %12, %13, %14, %15"
#define M4J_PLACES_5 M4J_PLACES_4 ", %16, %17, %18, %19"
#define M4J_PLACES_6 M4J_PLACES_5 ", %20, %21, %22, %23"
#define M4J_PLACES_7 M4J_PLACES_6 ", %24, %25, %26, %27"
#define M4J_PLACES_8 M4J_PLACES_7 ", %28, %29, %30, %31"
#define M4J_PLACES_9 M4J_PLACES_8 ", %32, %33, %34, %35"
#define M4J_PLACES_10 M4J_PLACES_9 ", %36, %37, %38, %39"
#define M4J_PLACES_11 M4J_PLACES_10 ", %40, %41, %42, %43"
#define M4J_PLACES_12 M4J_PLACES_11 ", %44, %45, %46, %47"
#define M4J_PLACES_13 M4J_PLACES_12 ", %48, %49, %50, %51"
#define M4J_PLACES_14 M4J_PLACES_13 ", %52, %53, %54, %55"
#define M4J_PLACES_15 M4J_PLACES_14 ", %56, %57, %58, %59"
#define M4J_PLACES_16 M4J_PLACES_15 ", %60, %61, %62, %63"

// One product of 16-bit numbers of a kind: behind the sum's places come those of the operands, as `text` names them.
#define M4J_PRODUCT(tiles, n, type, text, add_at, ...)                                                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_at ", 0;\n"                                                  \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" M4J_PLACES_##tiles "}, " text     \
               ";\n}\n"                                                                                               \
               : M4J_TILES_##tiles(d)                                                                                 \
               : __VA_ARGS__, "l"(b), "r"(static_cast<int>(add)))
#define M4J_DEFINE_PRODUCT(name, tiles, n, left, text, add_at, ...)                                                   \
  template <typename T>                                                                                               \
  __device__ __forceinline__ void name(float (&d)[tiles][4], left, uint64_t b, bool add) {                            \
    if constexpr (std::is_same_v<T, __half>) {                                                                        \
      M4J_PRODUCT(tiles, n, "f16", text, add_at, __VA_ARGS__);                                                        \
    } else {                                                                                                          \
      M4J_PRODUCT(tiles, n, "bf16", text, add_at, __VA_ARGS__);                                                       \
    }                                                                                                                 \
  }

// d = a b^T, or d += a b^T: a [64, 16] and b [n, 16] by their rows.
#define M4J_DEFINE_PRODUCT_ROWS(tiles, n, a_at, b_at, add_at) \
  M4J_DEFINE_PRODUCT(product_rows, tiles, n, uint64_t a, "%" #a_at ", %" #b_at ", p, 1, 1, 0, 0", add_at, "l"(a))
M4J_DEFINE_PRODUCT_ROWS(2, 16, 8, 9, 10)
M4J_DEFINE_PRODUCT_ROWS(3, 24, 12, 13, 14)
M4J_DEFINE_PRODUCT_ROWS(4, 32, 16, 17, 18)
M4J_DEFINE_PRODUCT_ROWS(5, 40, 20, 21, 22)
M4J_DEFINE_PRODUCT_ROWS(6, 48, 24, 25, 26)
M4J_DEFINE_PRODUCT_ROWS(8, 64, 32, 33, 34)
M4J_DEFINE_PRODUCT_ROWS(10, 80, 40, 41, 42)
M4J_DEFINE_PRODUCT_ROWS(11, 88, 44, 45, 46)
M4J_DEFINE_PRODUCT_ROWS(12, 96, 48, 49, 50)
M4J_DEFINE_PRODUCT_ROWS(16, 128, 64, 65, 66)

// The same with a in registers.
#define M4J_DEFINE_PRODUCT_OF_REGISTERS(name, tiles, n, a_at, b_at, by_columns, add_at)                               \
  M4J_DEFINE_PRODUCT(name, tiles, n, const uint32_t(&a)[4], "{" a_at "}, %" #b_at ", p, 1, 1, " #by_columns, add_at,  \
                     "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]))

M4J_DEFINE_PRODUCT_OF_REGISTERS(product_rows, 8, 64, "%32, %33, %34, %35", 36, 0, 37)

// d = a b, or d += a b: b [16, n] by its rows.
M4J_DEFINE_PRODUCT_OF_REGISTERS(product, 8, 64, "%32, %33, %34, %35", 36, 1, 37)
M4J_DEFINE_PRODUCT_OF_REGISTERS(product, 16, 128, "%64, %65, %66, %67", 68, 1, 69)

#undef M4J_TILE
#undef M4J_PRODUCT
#undef M4J_DEFINE_PRODUCT
#undef M4J_DEFINE_PRODUCT_ROWS
#undef M4J_DEFINE_PRODUCT_OF_REGISTERS

}  // namespace m4j::cuda
