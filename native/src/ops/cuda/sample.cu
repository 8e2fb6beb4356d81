// A cluster of blocks a row, one block where there are many rows, which walks it a few times: for the largest score,
// twice or more for each filter that ends within the row, for the sum of what is left, and a warp's part of it for the
// token.
// The row is not sorted: a filter ends in one of 2,048 bins of scores, and only the keys in that bin are put in order.
// Sums are of integers, so neither the order of atomic additions nor the number of threads or blocks changes a result.
//
// A step of a model drives this code out of the instruction cache, and reading it back takes longer than what it does
// for the few ids of a thread (bench/NOTES-gpu.md). So loops are not unrolled, but for loads that go out together.
#include "ops/cuda/chain.cuh"
#include "ops/cuda/cluster.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"
#include "ops/sampling.h"

namespace m4j::cuda {
namespace {

constexpr int kWarps = 32;
constexpr int kThreads = kWarp * kWarps;
constexpr unsigned kMaxBlocks = 8;  // of a row
constexpr int kIdsToShare = 4;      // a thread has more, or its row is not shared by twice as many blocks
constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;
constexpr float kBinsOfOne = kBins / 41.0f;  // bins of a factor of 2 in weight, which ends at 2^-40
constexpr int kListed = 512;                 // keys that are put in order, a power of 2
constexpr int kCrowd = 8;                    // lanes with one bin that add up before they count
constexpr uint64_t kNoNumber = uint64_t{0xffffffff} << 32;  // above all keys of numbers

// A bin, how many keys of the row are in it, and how many come before or what those weigh.
struct Bin {
  int index;
  uint32_t count;
  uint64_t before;
};

struct Shared {
  SampleItem item;
  uint32_t counts[kBins];
  uint32_t low[kBins], high[kBins];  // halves of sums of weights: the hardware adds 32 bits
  uint64_t partials[kWarps], of_blocks[2][kMaxBlocks];
  Bin found;
  uint64_t least;
  uint64_t list[kListed];  // keys, of the first block, for all
  int listed;
};

__device__ uint64_t add(uint64_t a, uint64_t b) { return a + b; }
__device__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }
__device__ uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

template <typename Op>
__device__ uint64_t warp_reduce(uint64_t v, Op op) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) v = op(v, __shfl_xor_sync(~0u, v, lanes));
  return v;
}

class Row {
 public:
  __device__ Row(Shared& shared, uint32_t* recent, const float* logits)
      : s(shared), item(shared.item), recent_(recent), x(logits), n(static_cast<int>(item.candidates)),
        scale(item.scale), penalises(item.n_recent > 0), lane(threadIdx.x % kWarp), warp(threadIdx.x / kWarp),
        blocks(cluster_blocks()), rank(cluster_rank()) {
    const int loads = (n + kWarp - 1) / kWarp, warps = static_cast<int>(blocks) * kWarps;
    const int share = (loads + warps - 1) / warps * kWarp;
    begin = min((static_cast<int>(rank) * kWarps + warp) * share, n);
    end = min(begin + share, n);
    mark_recent();
  }

  __device__ void sample(SampleResult* result) {
    uint64_t best = 0, largest_logit_key = 0;
    find_largest(best, largest_logit_key);
    if (best >= kNoNumber) return write_by_first(result, {-1 - id_of_key(best), x[id_of_key(best)]});
    largest = score_of_key(best);
    const bool greedy = scale == 0;
    if (greedy && item.log_prob == 0) return write_by_first(result, {id_of_key(best), 0});
    uint64_t least = greedy ? best : 0;
#pragma unroll 1
    for (int filter = 0; filter < (greedy ? 0 : 2); ++filter) {
      const bool by_count = filter == 0;
      if (by_count ? item.top_k < n : item.top_p != 0) least = border(least, by_count);
    }
    draw(least, greedy, score_of_key(largest_logit_key), result);
  }

 private:
  __device__ void mark_recent() {
    if (!penalises) return;
    for (int i = static_cast<int>(threadIdx.x); i < (n + 31) / 32; i += kThreads) recent_[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < item.n_recent; i += kThreads) {
      const int32_t id = item.recent[i];
      if (id >= 0 && id < n) atomicOr(recent_ + id / 32, 1u << id % 32);
    }
    __syncthreads();
  }

  __device__ float score(int id, float logit) const {
    const float v = flushed(logit);
    if (!penalises) return v;
    return recent_[id / 32] >> id % 32 & 1 ? penalised(v, item.penalty) : v;
  }

  // body(id, logit, whether there is such an id) until it says true; all lanes together, neighbouring lanes with
  // neighbouring ids, which ascend from call to call. Its code comes kAtOnce times.
  template <int kAtOnce, typename Body>
  __device__ void walk(Body&& body) const {
    float next[kAtOnce];
    const auto load = [&](int first) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int id = first + u * kWarp;
        next[u] = id < end ? x[id] : 0;
      }
    };
    load(begin + lane);
#pragma unroll 1
    for (int first = begin + lane; first - lane < end; first += kWarp * kAtOnce) {
      float logits[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) logits[u] = next[u];
      load(first + kWarp * kAtOnce);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int id = first + u * kWarp;
        if (body(id, logits[u], id < end)) return;
      }
    }
  }

  template <int kAtOnce = 1, typename Body>
  __device__ void for_each(Body&& body) const {
    walk<kAtOnce>([&](int id, float logit, bool exists) {
      body(id, logit, exists);
      return false;
    });
  }

  // The values of all blocks: [blocks]. All threads meet; what was returned two calls ago is overwritten.
  __device__ const uint64_t* exchange(uint64_t of_this_block) {
    uint64_t* const values = s.of_blocks[turn];
    turn ^= 1;
    if (threadIdx.x < blocks) *of_block(values + rank, threadIdx.x) = of_this_block;
    cluster_meet();
    return values;
  }

  // Of all threads of the row.
  template <typename Op>
  __device__ uint64_t reduce(uint64_t v, Op op) {
    v = warp_reduce(v, op);
    if (lane == 0) s.partials[warp] = v;
    __syncthreads();
    const uint64_t* values = exchange(warp_reduce(s.partials[lane], op));
    v = values[0];
#pragma unroll 1
    for (unsigned b = 1; b < blocks; ++b) v = op(v, values[b]);
    return v;
  }

  // What the warps up to this one add up to, of all of the row; `v` is the warp's. `total` is what all do.
  __device__ uint64_t running_sum_of_warps(uint64_t v, uint64_t& total) {
    if (lane == 0) s.partials[warp] = v;
    __syncthreads();
    const uint64_t of_warps = warp_running_sum(s.partials[lane], lane);
    uint64_t running = __shfl_sync(~0u, of_warps, warp);
    const uint64_t* values = exchange(__shfl_sync(~0u, of_warps, kWarps - 1));
    total = 0;
#pragma unroll 1
    for (unsigned b = 0; b < blocks; ++b) {
      if (b < rank) running += values[b];
      total += values[b];
    }
    return running;
  }

  // The largest key, or kNoNumber and the key of the first logit that is none.
  __device__ void find_largest(uint64_t& best, uint64_t& largest_logit_key) {
    float top = -INFINITY, top_logit = -INFINITY;
    int top_id = 0;
    uint64_t bad = 0;
    for_each<8>([&](int id, float logit, bool exists) {
      if (!exists) return;
      if (!is_finite_number(logit)) bad = larger(bad, kNoNumber | (0xffffffffu - static_cast<uint32_t>(id)));
      const float v = score(id, logit);
      if (v > top) top = v, top_id = id;
      top_logit = fmaxf(top_logit, flushed(logit));
    });
    best = reduce(larger(bad, top == -INFINITY ? 0 : sample_key(top, top_id)), larger);
    largest_logit_key = best;
    if (penalises) largest_logit_key = reduce(top_logit == -INFINITY ? 0 : sample_key(top_logit, 0), larger);
  }

  // What is asked of a token is worked out when it is asked.
  struct Token {
    int id;
    float score, exponent;
    __device__ uint64_t key() const { return sample_key(score, id); }
    __device__ uint64_t weight() const { return sample_weight(exponent); }
    __device__ int bin() const { return min(static_cast<int>(exponent * -kBinsOfOne), kBins - 1); }
  };
  __device__ Token token_of_score(int id, float v) const { return {id, v, sample_exponent(v, largest, scale)}; }
  __device__ Token token(int id, float logit) const { return token_of_score(id, score(id, logit)); }

  // The least key that stays if, of keys from `least` on, so many stay (by_count) or as many as weigh enough for top-p.
  // Where a bin holds too many keys for the list, its range is divided into bins in turn.
  __device__ uint64_t border(uint64_t least, bool by_count) {
    uint64_t first = least, last = ~uint64_t{0}, needed = 0;
    int shift = -1;  // not by keys yet, but by exponents of weights
    const auto bin_of = [&](const Token& t) {
      const uint64_t key = t.key();
      if (key < first || key > last) return -1;
      return shift < 0 ? t.bin() : static_cast<int>((last - key) >> shift);
    };
    for (;;) {
      count(bin_of);
      if (!find_bin(shift < 0, by_count, needed)) return least;
      const int bin = s.found.index;
      needed -= s.found.before;
      if (s.found.count <= kListed) return border_in_list(bin_of, bin, by_count, needed);
      if (shift < 0) {
        uint64_t low = ~uint64_t{0}, high = 0;
        for_each([&](int id, float logit, bool exists) {
          if (!exists) return;
          const Token t = token(id, logit);
          if (bin_of(t) != bin || t.weight() == 0) return;
          low = smaller(low, t.key()), high = larger(high, t.key());
        });
        first = reduce(low, smaller);
        last = reduce(high, larger);
      } else {
        last -= static_cast<uint64_t>(bin) << shift;
        const uint64_t low = last - ((uint64_t{1} << shift) - 1);
        first = low > last ? first : larger(first, low);
      }
      shift = max(0, 64 - __clzll(static_cast<long long>(last - first)) - kBinBits);
    }
  }

  // Each block counts what it walks over.
  template <typename BinOf>
  __device__ void count(BinOf&& bin_of) {
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) s.counts[i] = s.low[i] = s.high[i] = 0;
    __syncthreads();
    for_each([&](int id, float logit, bool exists) {
      int bin = -1;
      uint64_t weight = 0;
      if (exists) {
        const Token t = token(id, logit);
        weight = t.weight();
        bin = weight > 0 ? bin_of(t) : -1;
      }
      const unsigned counted = __ballot_sync(~0u, bin >= 0);
      if (counted == 0) return;
      const int leader = __ffs(static_cast<int>(counted)) - 1;
      const int bin_of_leader = __shfl_sync(~0u, bin, leader);
      const bool with_leader = bin == bin_of_leader;
      const int crowd = __popc(__ballot_sync(~0u, with_leader));
      if (crowd < kCrowd) {
        if (bin >= 0) add_to_bin(bin, 1, weight);
        return;
      }
      const uint64_t of_crowd = warp_reduce(with_leader ? weight : 0, add);
      if (bin >= 0 && (lane == leader || !with_leader)) {
        add_to_bin(bin, lane == leader ? static_cast<uint32_t>(crowd) : 1, lane == leader ? of_crowd : weight);
      }
    });
    cluster_meet();
  }

  __device__ void add_to_bin(int bin, uint32_t count, uint64_t weight) {
    atomicAdd(&s.counts[bin], count);
    const uint32_t low = static_cast<uint32_t>(weight);
    uint32_t high = static_cast<uint32_t>(weight >> 32);
    if (atomicAdd(&s.low[bin], low) + low < low) ++high;
    if (high > 0) atomicAdd(&s.high[bin], high);
  }

  // The bin at which the running sum reaches `needed`, which the first time follows from the total; false if all stay.
  // Each block adds up a range of bins over all blocks, and the one that finds the bin tells the others.
  __device__ bool find_bin(bool first_time, bool by_count, uint64_t& needed) {
    const int owned = kBins / static_cast<int>(blocks), mine = 2 * static_cast<int>(threadIdx.x);
    const int bin = static_cast<int>(rank) * owned + mine;
    uint64_t a = 0, b = 0;
    const uint32_t* const low_words = by_count ? s.counts : s.low;
    if (mine < owned) {
#pragma unroll
      for (unsigned block = 0; block < kMaxBlocks; ++block) {  // all loads on their way at once
        if (block >= blocks) continue;
        const auto two = [&](const uint32_t* of_bins) {
          return *reinterpret_cast<const uint2*>(of_block(of_bins, block) + bin);
        };
        const uint2 low = two(low_words), high = two(s.high);
        a += (by_count ? 0 : static_cast<uint64_t>(high.x) << 32) + low.x;
        b += (by_count ? 0 : static_cast<uint64_t>(high.y) << 32) + low.y;
      }
    }
    const uint64_t running_in_warp = warp_running_sum(a + b, lane);
    const uint64_t of_warp = __shfl_sync(~0u, running_in_warp, kWarp - 1);
    uint64_t total = 0;
    const uint64_t running = running_sum_of_warps(of_warp, total) - of_warp + running_in_warp;
    if (first_time) {
      needed = by_count ? static_cast<uint64_t>(item.top_k) : enough_weight(total, item.top_p);
      if (total <= needed) return false;
    }
    const uint64_t before = running - a - b;
    if (before < needed && running >= needed) {
      const bool in_a = before + a >= needed;
      Bin found{in_a ? bin : bin + 1, 0, in_a ? before : before + a};
#pragma unroll
      for (unsigned block = 0; block < kMaxBlocks; ++block) {
        if (block < blocks) found.count += of_block(s.counts, block)[found.index];
      }
#pragma unroll 1
      for (unsigned block = 0; block < blocks; ++block) *of_block(&s.found, block) = found;
      *of_block(&s.listed, 0) = 0;
    }
    cluster_meet();
    return true;
  }

  template <typename BinOf>
  __device__ uint64_t border_in_list(BinOf&& bin_of, int bin, bool by_count, uint64_t needed) {
    uint64_t* const list = of_block(s.list, 0);
    int* const listed = of_block(&s.listed, 0);
    for_each([&](int id, float logit, bool exists) {
      if (!exists) return;
      const Token t = token(id, logit);
      if (bin_of(t) != bin || t.weight() == 0) return;
      list[atomicAdd(listed, 1)] = t.key();
    });
    cluster_meet();
    if (rank == 0) {
      const int count = s.listed;
      const uint64_t key = sorted(count);
      const bool exists = static_cast<int>(threadIdx.x) < count;
      const uint64_t weight = !exists ? 0 : by_count ? 1 : token_of_score(id_of_key(key), score_of_key(key)).weight();
      uint64_t running = warp_running_sum(weight, lane);
      if (lane == kWarp - 1) s.partials[warp] = running;
      __syncthreads();
#pragma unroll 1
      for (int w = 0; w < warp; ++w) running += s.partials[w];
      if (running >= needed && running - weight < needed) {
#pragma unroll 1
        for (unsigned block = 0; block < blocks; ++block) *of_block(&s.least, block) = key;
      }
    }
    cluster_meet();
    return s.least;
  }

  // The key, of `count` ones in the list, that has the place of the thread in descending order. By a bitonic network
  // (Batcher, "Sorting networks and their applications", 1968): a warp exchanges through registers, warps through the
  // list.
  __device__ uint64_t sorted(int count) {
    const int i = static_cast<int>(threadIdx.x), places = max(kWarp, 1 << (32 - __clz(count - 1)));
    const bool has_place = i < places;
    uint64_t mine = i < count ? s.list[i] : 0, other = 0;
#pragma unroll 1
    for (int size = 2; size < 2 * count; size *= 2) {
#pragma unroll 1
      for (int distance = size / 2; distance > 0; distance /= 2) {
        if (distance >= kWarp) {
          if (has_place) s.list[i] = mine;
          __syncthreads();
          if (has_place) other = s.list[i ^ distance];
          __syncthreads();
        } else if (has_place) {
          other = __shfl_xor_sync(~0u, mine, distance);
        }
        const bool descending = (i & size) == 0, is_first = (i & distance) == 0;
        if (has_place && (mine > other) != (descending == is_first)) mine = other;
      }
    }
    return mine;
  }

  __device__ uint64_t kept_weight(int id, float logit, uint64_t least) const {
    const Token t = token(id, logit);
    if (t.key() < least) return 0;
    const uint64_t weight = t.weight();
    return weight >= item.min_weight ? weight : 0;
  }

  // The token among keys from `least` on, which is the largest key if greedy.
  __device__ void draw(uint64_t least, bool greedy, float largest_logit, SampleResult* result) {
    uint64_t kept = 0, all = 0;
    for_each<2>([&](int id, float logit, bool exists) {
      if (!exists) return;
      if (!greedy) kept += kept_weight(id, logit, least);
      if (item.log_prob != 0) {
        all += sample_weight(sample_exponent(flushed(logit), largest_logit, kNaturalScale));
      }
    });
    if (item.log_prob != 0) all = reduce(all, add);
    const auto finish = [&](int id) {
      *result = {id, item.log_prob != 0 ? sample_log_prob(flushed(x[id]), largest_logit, all) : 0};
    };
    if (greedy) {
      if (rank == 0 && threadIdx.x == 0) finish(id_of_key(least));
      return;
    }
    kept = warp_reduce(kept, add);
    uint64_t total = 0, before = running_sum_of_warps(kept, total) - kept;
    const uint64_t target = high_product(total, item.random);
    if (before > target || before + kept <= target) return;
    walk<1>([&](int id, float logit, bool exists) {
      const uint64_t running = before + warp_running_sum(exists ? kept_weight(id, logit, least) : 0, lane);
      const unsigned beyond = __ballot_sync(~0u, running > target);
      before = __shfl_sync(~0u, running, kWarp - 1);
      if (beyond == 0) return false;
      if (lane == __ffs(static_cast<int>(beyond)) - 1) finish(id);
      return true;
    });
  }

  __device__ void write_by_first(SampleResult* to, SampleResult result) const {
    if (rank == 0 && threadIdx.x == 0) *to = result;
  }

  Shared& s;
  const SampleItem& item;
  uint32_t* const recent_;  // a bit for each id that is penalised
  const float* const x;
  const int n;
  const float scale;
  const bool penalises;
  const int lane, warp;
  const unsigned blocks, rank;  // of the row, of this block among them
  int begin, end;               // ids of the warp
  int turn = 0;                 // of s.of_blocks
  float largest;                // score
};

__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleArgs a) {
  __shared__ Shared shared;
  extern __shared__ uint32_t recent[];
  constexpr int kWords = sizeof(SampleItem) / sizeof(uint32_t);
  const unsigned row = blockIdx.x / cluster_blocks();
  if (threadIdx.x < kWords) {
    reinterpret_cast<uint32_t*>(&shared.item)[threadIdx.x] = reinterpret_cast<const uint32_t*>(a.items + row)[threadIdx.x];
  }
  cluster_meet();
  wait_for_previous();
  if (shared.item.candidates == 0) return;
  Row(shared, recent, a.logits + shared.item.row * a.ld_logits).sample(a.results + row);
}

// Blocks of a row: as many as there is room for, while threads have enough to do.
unsigned blocks_of_row(const SampleArgs& a) {
  if (!can_wait(reinterpret_cast<const void*>(sample_kernel))) return 1;
  const int64_t room = device_attribute(cudaDevAttrMultiProcessorCount);
  unsigned blocks = 1;
  while (2 * blocks <= kMaxBlocks && 2 * blocks * a.count <= room &&
         a.vocab_size > int64_t{blocks} * kThreads * kIdsToShare) {
    blocks *= 2;
  }
  return blocks;
}

}  // namespace

void sample(const SampleArgs& a, cudaStream_t stream) {
  constexpr int kMostBytes = kMaxGpuSampleVocab / 8;
  static_assert(sizeof(Shared) + kMostBytes <= 99 << 10);  // of the cards that have least
  const auto bytes = static_cast<std::size_t>((a.vocab_size + 31) / 32 * 4);
  // Not `bytes`: what is allowed belongs to the function, and another engine on this GPU may be about to launch it.
  check(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostBytes), "sample");
  const unsigned blocks = blocks_of_row(a);
  launch_kernel("sample", sample_kernel,
                {.blocks = a.count * blocks,
                 .threads = kThreads,
                 .shared_bytes = bytes,
                 .cluster = blocks},
                stream, a);
}

}  // namespace m4j::cuda
