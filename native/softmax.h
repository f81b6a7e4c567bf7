// Step 2 of a task: running maxima, and scores to weights exp(score - running max).
//
// Inputs: scores in the score buffer, largest scores per lane. Outputs: State::softmax; weights in
// float32, as pairs of bfloat16, or both. All rows and keys of a task are scored before any weight
// is computed, so a task rescales a row once (two-step softmax); a row whose keys are several tasks
// rescales from task to task (online softmax). Accumulators: float32 per lane, added to the state
// at the end. Tail rule: scores of -inf, which fill panels, have weight 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "exp.h"
#include "simd.h"
#include "softmax_state.h"
#include "task_context.h"

namespace keywise::KEYWISE_TARGET {

// Makes the state that of rows without keys.
static void reset_state(const TaskContext& context) {
  const State& state = context.state;
  for (int64_t row = 0; row < context.rows; ++row) state.softmax[row] = {-kInfinity, 0.0f, 0.0f};
  __builtin_memset(state.values, 0,
                   std::size_t(context.rows * context.value_width) * sizeof(float));
  for (int64_t i = 0; i < context.rows * context.problem.top_k(); ++i) {
    state.top_scores[i] = -kInfinity;
    state.top_keys[i] = -1;
  }
}

// Raises a row's running maximum to its largest score; stores the factor for the value sums that
// belong to the old one.
static void update_running_max(const TaskContext& context, int64_t row) {
  const Workspace& workspace = context.workspace;
  SoftmaxState& softmax = context.state.softmax[row];
  const float largest = reduce_max(load(workspace.lane_max + row * kLanes));
  const float before = softmax.running_max;
  float rescale = 1.0f;
  if (largest > before) {
    softmax.running_max = largest;
    if (before == -kInfinity) {
      rescale = 0.0f;
    } else {
      const float shift = (before - largest) * context.problem.score_unit_base2();
      rescale = __builtin_exp2f(shift);
      softmax.score_moment = rescale * (softmax.score_moment + shift * softmax.running_sum);
    }
    softmax.running_sum *= rescale;
  }
  workspace.rescale[row] = rescale;
  context.scores.running_max[row] = softmax.running_max;
  store(workspace.lane_sums + row * kLanes, zero());
  store(workspace.lane_moments + row * kLanes, zero());
}

// Adds the sums of all lanes to the state of a row.
static inline void add_lane_sums(const TaskContext& context, int64_t row) {
  const Workspace& workspace = context.workspace;
  SoftmaxState& softmax = context.state.softmax[row];
  softmax.running_sum += reduce_add(load(workspace.lane_sums + row * kLanes));
  if (context.problem.wants_statistics)
    softmax.score_moment += reduce_add(load(workspace.lane_moments + row * kLanes));
}

// What the weights of a row are computed with, and their sums.
struct RowSums {
  Vec running_max;
  Vec unit_base2;
  Vec sum;
  Vec moment;
};

// Computes the weights of some panels of a row.
template <int kPanels, bool kMoments, bool kPairs>
KEYWISE_INLINE void compute_panel_weights(const float* scores, RowSums& row, float* weights,
                                          float* pairs) {
  constexpr int kVectors = 2 * kPanels;
  Vec x[kVectors];
  Vec panel_weights[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v)
    x[v] = mul(sub(load(scores + v * kLanes), row.running_max), row.unit_base2);
  exp2_nonpositive<kVectors>(x, panel_weights);
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    if (kMoments) row.moment = mul_add(panel_weights[v], x[v], row.moment);
    row.sum = add(row.sum, panel_weights[v]);
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    if (!kPairs || kMoments) store(weights + v * kLanes, panel_weights[v]);
    if (kPairs && v % 2 == 0)
      store(pairs + v * kLanes / 2, to_pairs(panel_weights[v], panel_weights[v + 1]));
  }
}

// Computes the weights of a tile's scores [begin, end) of a block, in whole panels. With pairs,
// weights in float32 are written only where moments are wanted, that is for statistics.
template <bool kMoments, bool kPairs>
static void compute_weights(const TaskContext& context, const Tile& tile, const float* scores,
                            int64_t begin, int64_t end, float* weights, float* pairs) {
  const Workspace& workspace = context.workspace;
  const Vec unit_base2 = broadcast(context.problem.score_unit_base2());
  for (int64_t r = 0; r < tile.row_count; ++r) {
    const int64_t row = tile.first_row + r;
    const int64_t offset = r * kBlockKeys;
    float* const lane_sums = workspace.lane_sums + row * kLanes;
    float* const lane_moments = workspace.lane_moments + row * kLanes;
    // A row that has seen no key has scores of -inf, whose weights are 0 relative to any finite
    // maximum.
    const float running_max = context.state.softmax[row].running_max;
    RowSums sums;
    sums.running_max = broadcast(running_max == -kInfinity ? 0.0f : running_max);
    sums.unit_base2 = unit_base2;
    sums.sum = load(lane_sums);
    sums.moment = load(lane_moments);
    int64_t j = begin;
    constexpr int64_t kStep = kSoftmaxPanels * kPanelKeys;
    for (; j + kStep <= end; j += kStep)
      compute_panel_weights<kSoftmaxPanels, kMoments, kPairs>(
          scores + offset + j, sums, weights + offset + j, pairs + offset + j / 2);
    for (; j < end; j += kPanelKeys)
      compute_panel_weights<1, kMoments, kPairs>(scores + offset + j, sums, weights + offset + j,
                                                 pairs + offset + j / 2);
    store(lane_sums, sums.sum);
    if (kMoments) store(lane_moments, sums.moment);
  }
}

// Computes the weights of a tile against the keys of a block that it has scores of, and returns
// where they are: in the score buffer where statistics need them, else in Workspace::tile_weights.
// With pairs, these are in tile_weights in any case.
static float* compute_tile_weights(const TaskContext& context, const KeyBlock& block,
                                   const Tile& tile, const KeyRange& keys, bool pairs) {
  const bool keeps_weights = context.problem.wants_statistics;
  float* const scores = row_scores(context, block.index, tile.first_row);
  float* const tile_weights = context.workspace.tile_weights;
  float* const weights = keeps_weights ? scores : tile_weights;
  const auto with_moments =
      pairs ? compute_weights<true, kHasBf16Dot> : compute_weights<true, false>;
  const auto without_moments =
      pairs ? compute_weights<false, kHasBf16Dot> : compute_weights<false, false>;
  const auto compute = keeps_weights ? with_moments : without_moments;
  compute(context, tile, scores, keys.begin, keys.end, weights, tile_weights);
  return weights;
}

}  // namespace keywise::KEYWISE_TARGET
