// The random numbers of dropout: Philox4x32-10 of a counter (key / 4, query, head of a batch item,
// offset), whose four words belong to four consecutive keys.
//
// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011). Tail rule: factors
// are written for whole groups of kDropoutKeys keys.
#pragma once

#include <cstdint>

#include "simd.h"
#include "task_context.h"

namespace keywise::KEYWISE_TARGET {

// Counters that are computed together, so that the compiler uses vectors, and their keys.
static constexpr int kCounters = 16;
static constexpr int64_t kDropoutKeys = 4 * kCounters;
static_assert(kBlockKeys % kDropoutKeys == 0);

struct RandomWords {
  uint32_t word[4][kCounters];
};

// Replaces kCounters counters by their random numbers.
static inline void run_philox(uint64_t seed, RandomWords& random) {
  constexpr int kRounds = 10;
  uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kCounters; ++i) {
      const uint64_t first = uint64_t(random.word[0][i]) * 0xD2511F53u;
      const uint64_t second = uint64_t(random.word[2][i]) * 0xCD9E8D57u;
      random.word[0][i] = uint32_t(second >> 32) ^ random.word[1][i] ^ key[0];
      random.word[1][i] = uint32_t(second);
      random.word[2][i] = uint32_t(first >> 32) ^ random.word[3][i] ^ key[1];
      random.word[3][i] = uint32_t(first);
    }
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
}

// Writes the factors of a row's weights against the keys [begin, end) of a block, counted from
// first_key: 0 or Dropout::factor. `factors` has room for a block.
static void compute_dropout_factors(const Problem& problem, const RowPlace& place,
                                    int64_t first_key, int64_t begin, int64_t end, float* factors) {
  const Dropout& dropout = problem.dropout;
  const uint32_t head = uint32_t(place.item * problem.query_heads + place.head);
  for (int64_t j = round_down(begin, kDropoutKeys); j < end; j += kDropoutKeys) {
    RandomWords random;
    for (int i = 0; i < kCounters; ++i) {
      random.word[0][i] = uint32_t((first_key + j) / 4 + i);
      random.word[1][i] = uint32_t(place.token);
      random.word[2][i] = head;
      random.word[3][i] = dropout.offset;
    }
    run_philox(dropout.seed, random);
    for (int i = 0; i < kCounters; ++i)
      for (int w = 0; w < 4; ++w)
        factors[j + 4 * i + w] = random.word[w][i] < dropout.threshold ? 0.0f : dropout.factor;
  }
}

// Multiplies the weights of a tile by their factors, into Workspace::tile_weights.
static void drop_weights(const TaskContext& context, const KeyBlock& block, const Tile& tile,
                         const KeyRange& keys, const float* weights) {
  float* const factors = context.workspace.block_row;
  const int64_t end = round_up(keys.end, kPanelKeys);
  for (int64_t r = 0; r < tile.row_count; ++r) {
    compute_dropout_factors(context.problem, find_place(context, tile.first_row + r),
                            block.first_key, keys.begin, end, factors);
    float* const kept = context.workspace.tile_weights + r * kBlockKeys;
    for (int64_t j = keys.begin; j < end; j += kLanes)
      store(kept + j, mul(load(weights + r * kBlockKeys + j), load(factors + j)));
  }
}

}  // namespace keywise::KEYWISE_TARGET
