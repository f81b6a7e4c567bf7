// The forward pass of one task: some query rows of a key head against some keys.
//
// Steps: scores (scores.h), running maxima and top k (softmax.h, top_k.h), then per tile weights
// (softmax.h), segment sums (statistics.h) and weighted values (values.h). Scores of all rows and
// keys wait in the score buffer in between.
#pragma once

#include <cstdint>

#include "dropout.h"
#include "pack.h"
#include "scores.h"
#include "simd.h"
#include "softmax.h"
#include "statistics.h"
#include "task_context.h"
#include "top_k.h"
#include "values.h"
#include "visible_keys.h"

namespace keywise::KEYWISE_TARGET {

// Finds which keys every row and every tile sees.
static void find_visibility(const TaskContext& context) {
  const Task& task = context.task;
  VisibleKeys* const rows = context.workspace.visible;
  const bool is_uniform = has_uniform_visibility(context.problem);
  for (int64_t row = 0; row < context.rows; ++row) {
    const bool is_new_token = (task.first_row + row) % context.group == 0;
    if (row > 0 && (is_uniform || !is_new_token))
      rows[row] = rows[row - 1];
    else
      rows[row] = find_visible_keys(context.problem, task, task.token(row, context.group));
  }
  for (int64_t row = 0; row < context.rows; row += kTileRows)
    context.workspace.tile_visible[row / kTileRows] =
        combine_rows(rows + row, min(kTileRows, context.rows - row));
}

static void compute_scores(TaskContext& context) {
  for (int64_t row = 0; row < context.rows; ++row)
    store(context.workspace.lane_max + row * kLanes, broadcast(-kInfinity));
  for (int64_t index = 0; index < context.scores.block_count; ++index) {
    const KeyBlock block = make_block(context, index);
    for (int64_t row = 0; row < context.rows; row += kTileRows)
      compute_tile_scores(context, block, make_tile(context, row));
  }
}

// Computes the weights of a tile against a block and multiplies them by the values.
static void accumulate_tile(TaskContext& context, const KeyBlock& block, const Tile& tile) {
  const KeyRange keys = scored_keys(context, block, tile);
  if (is_empty(keys)) return;
  const bool is_scaled = context.problem.stored_dtype == Dtype::int8;
  const bool skips_hidden = must_skip_hidden_values(context, block, tile);
  const bool pairs = context.value_pairs && !skips_hidden;
  const bool drops = context.problem.dropout.is_active;
  // Weights that are scaled or dropped become pairs afterwards.
  const bool changes = is_scaled || drops;
  const float* weights = compute_tile_weights(context, block, tile, keys, pairs && !changes);
  if (context.scores.range_count) sum_segment_ranges(context, block, tile, keys);
  if (drops) {
    drop_weights(context, block, tile, keys, weights);
    weights = context.workspace.tile_weights;
  }
  if (is_scaled) scale_weights(context, block, tile, keys, weights);
  if (changes && pairs) pair_weights(context, tile, keys);
  if (changes || pairs) weights = context.workspace.tile_weights;
  add_tile_values(context, block, tile, keys, weights, skips_hidden);
}

static void accumulate_values(TaskContext& context) {
  // Some CPUs are slow with weights that are almost 0. Scores are computed exactly.
  const FlushSubnormals flush_subnormals;
  for (int64_t index = 0; index < context.scores.block_count; ++index) {
    const KeyBlock block = make_block(context, index);
    for (int64_t row = 0; row < context.rows; row += kTileRows)
      accumulate_tile(context, block, make_tile(context, row));
  }
}

static void forward_task(const Problem& problem, const Task& task, const Workspace& workspace,
                         const State& state, const ScoreBuffer& scores) {
  TaskContext context = make_context(problem, task, workspace, state, scores);
  find_visibility(context);
  if (!task.continues) {
    reset_state(context);
    pack_queries(problem, task, context.key_pairs, context.keys_in_place, workspace.queries);
  }
  if (scores.range_count) reset_range_sums(context);

  compute_scores(context);
  for (int64_t row = 0; row < context.rows; ++row) {
    update_running_max(context, row);
    if (problem.top_k()) select_top_k(context, row);
  }
  accumulate_values(context);
  for (int64_t row = 0; row < context.rows; ++row) add_lane_sums(context, row);
}

}  // namespace keywise::KEYWISE_TARGET
