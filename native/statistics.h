// Attention statistics of rows: LSE, entropy, top k, and segment mass. Where a visible score is NaN
// or +inf, the denominator is NaN: all statistics of the row are NaN, and it has no top keys.
//
// Inputs: weights in the score buffer, complete state. Outputs: arrays of Statistics. Accumulators:
// float32 for segment ranges; float64 for the mass of the top k. Tail rule: weights of hidden keys
// are 0, so ranges need no mask.
#pragma once

#include <cstddef>
#include <cstdint>

#include "exp.h"
#include "normalize.h"
#include "simd.h"
#include "softmax_state.h"
#include "task_context.h"

namespace keywise::KEYWISE_TARGET {

// Returns the sums of the first `count` weights of up to R rows, lane r that of row r.
template <int R>
static inline Vec sum_weights(int64_t row_count, const float* weights, int64_t count) {
  if constexpr (R > 1) {
    if (row_count < R) return sum_weights<R - 1>(row_count, weights, count);
  }
  Vec sums[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) sums[r] = zero();
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes)
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sums[r] = add(sums[r], load(weights + r * kBlockKeys + j));
  if (j < count)
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      sums[r] = add(sums[r], load_n(weights + r * kBlockKeys + j, int(count - j)));
  return reduce_add_each(sums);
}

static inline void reset_range_sums(const TaskContext& context) {
  const int64_t sums = ceil_div(context.rows, kTileRows) * context.scores.range_count * kPadFloats;
  __builtin_memset(context.scores.range_sums, 0, std::size_t(sums) * sizeof(float));
}

// Adds the weights of a tile against the keys of a block to the sums of their segment ranges.
static void sum_segment_ranges(const TaskContext& context, const KeyBlock& block, const Tile& tile,
                               const KeyRange& keys) {
  const Statistics& statistics = context.problem.statistics;
  const ScoreBuffer& buffer = context.scores;
  const float* const weights = row_scores(context, block.index, tile.first_row);
  const int64_t last_range = buffer.first_range + buffer.range_count;
  float* sums = buffer.range_sums +
                (tile.first_row / kTileRows * buffer.range_count - buffer.first_range) * kPadFloats;
  for (int64_t range = block.first_range; range < last_range; ++range) {
    const int64_t* const bounds = statistics.segment_ranges + 3 * range;
    const int64_t begin = clamp(bounds[0] - block.first_key, keys.begin, keys.end);
    const int64_t end = clamp(bounds[1] - block.first_key, keys.begin, keys.end);
    if (begin == keys.end) break;
    if (begin == end) continue;
    const Vec range_sums = sum_weights<kTileRows>(tile.row_count, weights + begin, end - begin);
    store(sums + range * kPadFloats, add(load(sums + range * kPadFloats), range_sums));
  }
}

// Returns the index of a row of a task in the arrays of statistics, -1 for a row without
// statistics.
static int64_t statistics_index(const Problem& problem, const Task& task, int64_t row) {
  const Statistics& statistics = problem.statistics;
  const int64_t group = problem.group();
  const int64_t token = task.token(row, group);
  if (!problem.wants_statistics || token < statistics.first_query || token >= statistics.last_query)
    return -1;
  const int64_t head = task.item * problem.query_heads + task.query_head(row, group);
  return head * (statistics.last_query - statistics.first_query) + token - statistics.first_query;
}

// Returns the factor from the weights of a row in a score buffer to attention weights. The running
// maximum may have risen since the buffer's weights were computed.
static inline float weight_factor(const Problem& problem, const State& state,
                                  const ScoreBuffer& buffer, int64_t row) {
  const float shift =
      (buffer.running_max[row] - state.softmax[row].running_max) * problem.score_unit_base2();
  return shift == 0.0f ? state.inverse[row] : state.inverse[row] * __builtin_exp2f(shift);
}

// Adds the first `count` lanes to the numbers at `sums`.
static inline void add_lanes(float* sums, Vec lanes, int64_t count) {
  if (count == kLanes) return store(sums, add(load(sums), lanes));
  float numbers[kLanes];
  store(numbers, lanes);
  for (int64_t i = 0; i < count; ++i) sums[i] += numbers[i];
}

// Adds the range sums of a score buffer to the segment masses of a tile; rows without statistics
// have none.
static void add_segment_masses(const Problem& problem, const ScoreBuffer& buffer, const Tile& tile,
                               const float* factors, float* const* masses) {
  const float* const sums =
      buffer.range_sums + tile.first_row / kTileRows * buffer.range_count * kPadFloats;
  const int64_t* const ranges = problem.statistics.segment_ranges + 3 * buffer.first_range;
  int64_t count = 0;
  for (int64_t range = 0; range < buffer.range_count; range += count) {
    // The next range usually belongs to the next segment: up to kLanes such ranges are transposed
    // together.
    const int64_t segment = ranges[3 * range + 2];
    Vec totals[kLanes];
    for (count = 0; count < kLanes && range + count < buffer.range_count; ++count) {
      if (ranges[3 * (range + count) + 2] != segment + count) break;
      totals[count] = mul(load(sums + (range + count) * kPadFloats), load(factors));
    }
    for (int64_t i = count; i < kLanes; ++i) totals[i] = zero();
    transpose(totals);
    for (int64_t r = 0; r < tile.row_count; ++r)
      if (masses[r]) add_lanes(masses[r] + segment, totals[r], count);
  }
}

// Writes the segment mass of the rows of a complete task.
static void write_segment_mass(const Problem& problem, const Task& task, const State& state,
                               const ScoreBuffer* buffers, int64_t buffer_count) {
  const Statistics& statistics = problem.statistics;
  for (int64_t first_row = 0; first_row < task.rows(); first_row += kTileRows) {
    const Tile tile{first_row, min(kTileRows, task.rows() - first_row)};
    float* masses[kTileRows];
    for (int64_t r = 0; r < tile.row_count; ++r) {
      const int64_t index = statistics_index(problem, task, first_row + r);
      masses[r] = index < 0 ? nullptr : statistics.segment_mass + index * statistics.segments;
      const float inverse = state.inverse[first_row + r];
      const bool is_nan = inverse != inverse;
      for (int64_t s = 0; masses[r] && s < statistics.segments; ++s)
        masses[r][s] = is_nan ? inverse : 0.0f;
      if (is_nan) masses[r] = nullptr;
    }
    for (int64_t i = 0; i < buffer_count; ++i) {
      float factors[kLanes] = {};
      for (int64_t r = 0; r < tile.row_count; ++r)
        if (buffers[i].running_max[first_row + r] != -kInfinity)
          factors[r] = weight_factor(problem, state, buffers[i], first_row + r);
      add_segment_masses(problem, buffers[i], tile, factors, masses);
    }
  }
}

// Writes LSE, entropy and top k of a row.
static void write_row_statistics(const Problem& problem, int64_t index,
                                 const Denominator& denominator, const SoftmaxState& softmax,
                                 const float* top_scores, const int32_t* top_keys) {
  const Statistics& statistics = problem.statistics;
  const bool is_empty = denominator.is_empty;
  const float log_denominator = denominator.log_base2 * kLn2;
  statistics.lse[index] = compute_lse(problem, denominator, softmax);
  statistics.entropy[index] =
      is_empty ? 0.0f
               : denominator.inverse *
                     (log_denominator * softmax.running_sum - kLn2 * softmax.score_moment);

  const float inverse = denominator.inverse;
  if (inverse != inverse) {
    for (int64_t i = index * statistics.top_k; i < (index + 1) * statistics.top_k; ++i) {
      statistics.top_keys[i] = -1;
      statistics.top_weights[i] = inverse;
    }
    statistics.top_mass[index] = statistics.top_k ? inverse : 0.0f;
    return;
  }
  const Vec running_max = broadcast(is_empty ? 0.0f : softmax.running_max);
  const Vec unit_base2 = broadcast(problem.score_unit_base2());
  double top_mass = 0.0;
  for (int64_t first = 0; first < statistics.top_k; first += kLanes) {
    const int64_t count = min(kLanes, statistics.top_k - first);
    const Vec scores =
        count < kLanes ? load_n(top_scores + first, int(count)) : load(top_scores + first);
    const Vec shares = exp2_nonpositive(mul(sub(scores, running_max), unit_base2));
    float weights[kLanes];  // 0 where there is no key: its score is -inf
    store(weights, mul(shares, broadcast(inverse)));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = index * statistics.top_k + first + i;
      statistics.top_keys[place] = top_keys[first + i];
      statistics.top_weights[place] = weights[i];
      top_mass += double(weights[i]);
    }
  }
  statistics.top_mass[index] = float(top_mass);
}

}  // namespace keywise::KEYWISE_TARGET
