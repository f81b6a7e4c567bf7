// A task of the backward pass: some query rows of a key head against some keys.
//
// Per block of keys, and per query block: weights and gradients of scores (score_gradients.h), then
// their products with output gradients, queries and keys. Gradients of keys and values are complete
// when a task has seen all rows; gradients of queries are summed over the tasks of other keys.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backward.h"
#include "gradient_rows.h"
#include "gradient_tiles.h"
#include "pack.h"
#include "score_gradients.h"
#include "simd.h"
#include "value_tiles.h"

namespace keywise::KEYWISE_TARGET {

static void clear_rows(float* rows, int64_t count, int64_t width) {
  if (rows) __builtin_memset(rows, 0, std::size_t(count * width) * sizeof(float));
}

// Packs the keys and values of a block that some row sees.
static void pack_gradient_block(const GradientContext& context, const GradientBlock& block) {
  const Problem& problem = context.problem;
  const Problem& exchanged = context.backward.exchanged;
  const GradientWorkspace& workspace = context.workspace;
  const int64_t first_panel = round_down(block.visible.begin, kPanelKeys);
  const int64_t first_key = block.first_key + first_panel;
  const int64_t last_key = block.first_key + block.visible.end;
  pack_keys(problem, context.task, first_key, last_key, false,
            workspace.key_panels + first_panel * problem.head_dim);
  if (context.backward.needs_scores())
    pack_keys(exchanged, context.task, first_key, last_key, false,
              workspace.value_panels + first_panel * problem.value_dim);
  if (context.sums.queries)
    pack_values(exchanged, context.task, first_key, block.first_key + block.visible.begin, last_key,
                false, workspace.key_rows + first_panel * key_width(problem));
}

// Makes the keys of a tile outside those with scores 0, up to the keys that its query block has.
static void clear_other_keys(const Tile& tile, const KeyRange& keys, const KeyRange& all,
                             float* numbers) {
  for (int64_t r = 0; r < tile.row_count; ++r, numbers += kBlockKeys) {
    if (is_empty(keys)) {
      for (int64_t j = all.begin; j < all.end; ++j) numbers[j] = 0.0f;
      continue;
    }
    for (int64_t j = all.begin; j < keys.begin; ++j) numbers[j] = 0.0f;
    for (int64_t j = keys.end; j < all.end; ++j) numbers[j] = 0.0f;
  }
}

// Adds the products of a query block where a number is NaN or infinite: no hidden key meets its
// weight of 0.
static void add_visible_products(const GradientContext& context, const GradientBlock& block,
                                 int64_t first_row, int64_t row_count) {
  const Problem& problem = context.problem;
  const int64_t query_width = key_width(problem);
  const int64_t value_width = problem.value_width();
  const auto add_row = [](float factor, const float* row, int64_t width, float* sums) {
    for (int64_t d = 0; d < width; ++d) sums[d] += factor * row[d];
  };
  for (int64_t r = 0; r < row_count; ++r) {
    const int64_t row = first_row + r;
    const KeyRange& keys = context.workspace.tile_keys[r / kTileRows];
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const int64_t key = block.first_key + j;
      if (!row_sees_key(context, row, key)) continue;
      const float weight = context.workspace.weights[r * kBlockKeys + j];
      const float score = context.workspace.scores[r * kBlockKeys + j];
      if (context.sums.values)
        add_row(weight, context.rows.gradient_rows + row * value_width, value_width,
                context.sums.values + key * value_width);
      if (context.sums.keys)
        add_row(score, context.rows.query_rows + row * query_width, query_width,
                context.sums.keys + key * query_width);
      if (context.sums.queries)
        add_row(score, context.workspace.key_rows + j * query_width, query_width,
                context.sums.queries + row * query_width);
    }
  }
}

// Adds the products of a tile's gradients of scores with keys to the gradients of its queries.
static void add_query_products(const GradientContext& context, const Tile& tile,
                               const KeyRange& keys, const float* scores) {
  const int64_t width = key_width(context.problem);
  ValueRows values;
  values.first_row = reinterpret_cast<const char*>(context.workspace.key_rows + keys.begin * width);
  values.stride_bytes = width * int64_t(sizeof(float));
  values.packed = true;
  add_values_in_tiles<kPackedRows, kPackedVectors, Dtype::float32, false>(
      tile.row_count, scores + keys.begin, values, keys.end - keys.begin, width, nullptr,
      context.sums.queries + tile.first_row * width);
}

// Adds what the rows first_row .. first_row + row_count - 1 and a block of keys have in common.
static void add_query_block(GradientContext& context, const GradientBlock& block,
                            bool block_is_finite, int64_t first_row, int64_t row_count) {
  const Problem& problem = context.problem;
  const GradientWorkspace& workspace = context.workspace;
  const GradientSums& sums = context.sums;
  KeyRange all;
  for (int64_t r = 0; r < row_count; r += kTileRows) {
    const Tile tile{first_row + r, min(kTileRows, row_count - r)};
    workspace.tile_keys[r / kTileRows] = find_tile_keys(context, block, tile);
    all = join(all, workspace.tile_keys[r / kTileRows]);
  }
  if (is_empty(all)) return;
  context.is_exact = !block_is_finite || !context.rows.finite[first_row / kGradientBlockRows];
  for (int64_t r = 0; r < row_count; r += kTileRows) {
    const Tile tile{first_row + r, min(kTileRows, row_count - r)};
    const KeyRange& keys = workspace.tile_keys[r / kTileRows];
    float* const weights = workspace.weights + r * kBlockKeys;
    float* const scores = workspace.scores + r * kBlockKeys;
    if (!is_empty(keys)) compute_tile_gradients(context, block, tile, keys, weights, scores);
    clear_other_keys(tile, keys, all, weights);
    clear_other_keys(tile, keys, all, scores);
  }
  if (context.is_exact) return add_visible_products(context, block, first_row, row_count);

  // Some CPUs are slow with products that are almost 0.
  const FlushSubnormals flush_subnormals;
  const int64_t query_width = key_width(problem);
  const int64_t value_width = problem.value_width();
  const int64_t first_key = block.first_key + all.begin;
  if (sums.values)
    add_transposed_products(all.end - all.begin, workspace.weights + all.begin,
                            context.rows.gradient_rows + first_row * value_width, row_count,
                            value_width, sums.values + first_key * value_width);
  if (sums.keys)
    add_transposed_products(all.end - all.begin, workspace.scores + all.begin,
                            context.rows.query_rows + first_row * query_width, row_count,
                            query_width, sums.keys + first_key * query_width);
  for (int64_t r = 0; sums.queries && r < row_count; r += kTileRows) {
    const Tile tile{first_row + r, min(kTileRows, row_count - r)};
    const KeyRange& keys = workspace.tile_keys[r / kTileRows];
    if (!is_empty(keys)) add_query_products(context, tile, keys, workspace.scores + r * kBlockKeys);
  }
}

// Computes the sums of a task. Its rows begin with a query block.
static void add_gradients(const BackwardProblem& backward, const Task& task,
                          const GradientRows& rows, const GradientWorkspace& workspace,
                          const GradientSums& sums) {
  const Problem& problem = backward.forward;
  GradientContext context{backward, problem, task, rows, workspace, sums};
  context.group = problem.group();
  context.masks_by_key = problem.visibility.documents || problem.visibility.allowed;
  const int64_t query_width = key_width(problem);
  const int64_t value_width = problem.value_width();
  if (sums.queries)
    clear_rows(sums.queries + task.first_row * query_width, task.rows(), query_width);
  const VisibleKeys visible = find_visible_keys(problem, task);
  for (int64_t key = task.first_key; key < task.last_key; key += kBlockKeys) {
    GradientBlock block;
    block.first_key = key;
    block.key_count = min(kBlockKeys, task.last_key - key);
    block.visible = clip_to_block(visible, key, block.key_count);
    if (sums.keys) clear_rows(sums.keys + key * query_width, block.key_count, query_width);
    if (sums.values) clear_rows(sums.values + key * value_width, block.key_count, value_width);
    if (is_empty(block.visible)) continue;
    pack_gradient_block(context, block);
    const int64_t first_seen = key + block.visible.begin;
    const int64_t last_seen = key + block.visible.end;
    const bool is_finite = are_values_finite(problem, task, first_seen, last_seen) &&
                           are_values_finite(backward.exchanged, task, first_seen, last_seen);
    for (int64_t row = task.first_row; row < task.last_row; row += kGradientBlockRows)
      add_query_block(context, block, is_finite, row, min(kGradientBlockRows, task.last_row - row));
  }
}

}  // namespace keywise::KEYWISE_TARGET
