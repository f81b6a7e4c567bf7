// Key mass: weights summed over query rows, per key.
//
// A row of NaN counts for the keys that it sees, and for no others.
//
// Inputs: weights in the score buffer, complete state, query weights. Output: sums [group, keys] of
// several tasks, or the key mass itself. Accumulators: float32 per block of keys and rows of a
// task; float64 across tasks. Tail rule: weights of a tile outside the keys that it has scores of
// are not read; keys behind the last are not written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mask.h"
#include "simd.h"
#include "softmax_state.h"
#include "statistics.h"
#include "visible_keys.h"

namespace keywise::KEYWISE_TARGET {

// Adds factors[R] . weights[R] to the sums [begin, end), row after row, in whole vectors.
template <int R>
static inline void add_weighted_rows(const float* const* weights, const float* factors,
                                     int64_t begin, int64_t end, float* sums) {
  Vec row_factors[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) row_factors[r] = broadcast(factors[r]);
  for (int64_t j = begin; j < end; j += kLanes) {
    Vec mass = load(sums + j);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) mass = mul_add(load(weights[r] + j), row_factors[r], mass);
    store(sums + j, mass);
  }
}

// Computes sums[kBlockKeys] = factor . weights of one row.
static void scale_row(const ScoreBuffer& buffer, int64_t block, int64_t rows, int64_t row,
                      float factor, float* sums) {
  const int64_t index = block * rows + round_down(row, kTileRows);
  const int64_t begin = buffer.begin[index];
  const int64_t end = factor == 0.0f ? begin : buffer.end[index];
  const float* const weights = buffer.weights + (block * rows + row) * kBlockKeys;
  int64_t j = 0;
  for (; j < begin; j += kLanes) store(sums + j, zero());
  for (; j < end; j += kLanes) store(sums + j, mul(load(weights + j), broadcast(factor)));
  for (; j < kBlockKeys; j += kLanes) store(sums + j, zero());
}

// Adds NaN to the sums [begin, end) of the keys that a row sees. Its weights tell only some of
// them: those of other keys may have underflowed before NaN was found.
static void add_nan_row(const Problem& problem, const Task& task, int64_t row, int64_t first_key,
                        const float* weights, int64_t begin, int64_t end, float* sums) {
  const int64_t group = problem.group();
  const int64_t head = task.query_head(row, group);
  const int64_t token = task.token(row, group);
  Task all_keys = task;
  all_keys.first_key = 0;
  all_keys.last_key = problem.keys;
  const VisibleKeys visible = find_visible_keys(problem, all_keys, token);
  for (int64_t j = begin; j < end; ++j) {
    if (weights[j] != 0.0f || sees_key(problem, task.item, head, token, visible, first_key + j))
      sums[j] = __builtin_nanf("");
  }
}

// Computes sums[kBlockKeys]: factor . weights, summed over the rows first_row, first_row + step,
// ...
static void sum_rows(const Problem& problem, const Task& task, const ScoreBuffer& buffer,
                     int64_t block, int64_t first_row, int64_t step, const float* factors,
                     float* sums) {
  const int64_t rows = task.rows();
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) store(sums + j, zero());
  int64_t row = first_row;
  for (int64_t tile_row = 0; tile_row < rows; tile_row += kTileRows) {
    const int64_t begin = buffer.begin[block * rows + tile_row];
    const int64_t end = buffer.end[block * rows + tile_row];
    const float* tile_weights[kTileRows];
    float tile_factors[kTileRows];
    int64_t count = 0;
    for (; row < min(tile_row + kTileRows, rows); row += step) {
      const float* weights = buffer.weights + (block * rows + row) * kBlockKeys;
      const float factor = factors[row];
      if (factor == 0.0f || begin >= end) continue;
      const bool is_nan = factor != factor;
      if (is_nan) {
        add_nan_row(problem, task, row, buffer.first_key + block * kBlockKeys, weights, begin, end,
                    sums);
        continue;
      }
      tile_weights[count] = weights;
      tile_factors[count] = factor;
      ++count;
    }
    int64_t r = 0;
    for (; r + 4 <= count; r += 4)
      add_weighted_rows<4>(tile_weights + r, tile_factors + r, begin, end, sums);
    for (; r < count; ++r)
      add_weighted_rows<1>(tile_weights + r, tile_factors + r, begin, end, sums);
  }
}

// Returns whether a row sees a key of the block.
static bool is_block_visible(const ScoreBuffer& buffer, int64_t block, int64_t rows) {
  for (int64_t tile_row = 0; tile_row < rows; tile_row += kTileRows)
    if (buffer.begin[block * rows + tile_row] < buffer.end[block * rows + tile_row]) return true;
  return false;
}

// Computes the factor of every row: query weight / denominator; 0 for a row that counts nowhere.
static void compute_row_factors(const Problem& problem, const Task& task, const State& state,
                                const ScoreBuffer& buffer, float* factors) {
  const Statistics& statistics = problem.statistics;
  const int64_t group = problem.group();
  for (int64_t row = 0; row < task.rows(); ++row) {
    const int64_t token = task.token(row, group);
    const int64_t head = task.query_head(row, group);
    const bool has_statistics = token >= statistics.first_query && token < statistics.last_query;
    const int64_t* stride = statistics.query_weight_stride;
    const float query_weight =
        statistics.query_weights
            ? statistics.query_weights[task.item * stride[0] + head * stride[1] + token * stride[2]]
            : 1.0f;
    const bool is_nan = state.inverse[row] != state.inverse[row];
    factors[row] = 0.0f;
    if (!has_statistics || query_weight == 0.0f) continue;
    if (is_nan)
      factors[row] = state.inverse[row];
    else if (buffer.running_max[row] != -kInfinity)
      factors[row] = weight_factor(problem, state, buffer, row) * query_weight;
  }
}

static void accumulate_key_mass(const Problem& problem, const Task& task, const State& state,
                                const ScoreBuffer& buffer, const Workspace& workspace, double* sums,
                                float* mass) {
  const int64_t rows = task.rows();
  const int64_t group = problem.group();
  float* const factors = workspace.rescale;
  compute_row_factors(problem, task, state, buffer, factors);
  for (int64_t block = 0; block < buffer.block_count; ++block) {
    const int64_t first_key = buffer.first_key + block * kBlockKeys;
    const int64_t key_count = min(kBlockKeys, buffer.key_count - block * kBlockKeys);
    if (sums && !is_block_visible(buffer, block, rows)) continue;
    for (int64_t head = 0; head < group; ++head) {
      const int64_t column = head * problem.keys + first_key;
      // Whole vectors would be written behind the last key of a block that is not full.
      const bool is_direct = !sums && key_count == kBlockKeys;
      float* const block_mass = is_direct ? mass + column : workspace.block_row;
      const int64_t first_row = (head - task.first_row % group + group) % group;
      // Decoding one token has one row per head, which is scaled, not added to anything.
      if (rows == group && factors[first_row] == factors[first_row])
        scale_row(buffer, block, rows, first_row, factors[first_row], block_mass);
      else
        sum_rows(problem, task, buffer, block, first_row, group, factors, block_mass);
      if (sums)
        for (int64_t j = 0; j < key_count; ++j) sums[column + j] += double(block_mass[j]);
      else if (!is_direct)
        __builtin_memcpy(mass + column, block_mass, std::size_t(key_count) * sizeof(float));
    }
  }
}

}  // namespace keywise::KEYWISE_TARGET
