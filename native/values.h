// Step 3 of a task: the weights of a tile of rows times the values of a block of keys.
//
// Inputs: weights (softmax.h), the block's values. Output: State::values, rescaled once and added
// to. Accumulators: float32 (value_tiles.h). Tail rule: weights from the last key to the end of its
// panel are 0.
#pragma once

#include <cstdint>

#include "chunk_rows.h"
#include "mask.h"
#include "pack.h"
#include "simd.h"
#include "task_context.h"
#include "value_tiles.h"

namespace keywise::KEYWISE_TARGET {

static bool row_sees_key(const TaskContext& context, int64_t row, int64_t key) {
  const Task& task = context.task;
  return sees_key(context.problem, task.item, task.query_head(row, context.group),
                  task.token(row, context.group), context.workspace.visible[row], key);
}

// Multiplies weights by the scales of int8 values, into Workspace::tile_weights.
static void scale_weights(const TaskContext& context, const KeyBlock& block, const Tile& tile,
                          const KeyRange& keys, const float* weights) {
  float* const scaled = context.workspace.tile_weights;
  ChunkRows values;
  for (int64_t j = keys.begin; j < keys.end; j += values.count) {
    values = find_rows(context.problem, context.task, &Chunk::value, block.first_key + j,
                       block.first_key + keys.end);
    multiply_by_scales(tile.row_count, weights + j, values.scales, values.count, scaled + j);
  }
  for (int64_t r = 0; r < tile.row_count; ++r) {
    float* const row = scaled + r * kBlockKeys;
    for (int64_t j = keys.end; j < round_up(keys.end, kPanelKeys); ++j) row[j] = 0.0f;
  }
}

// Makes the weights in Workspace::tile_weights pairs of bfloat16, in place.
static void pair_weights(const TaskContext& context, const Tile& tile, const KeyRange& keys) {
  for (int64_t r = 0; r < tile.row_count; ++r) {
    float* const row = context.workspace.tile_weights + r * kBlockKeys;
    for (int64_t j = keys.begin; j < keys.end; j += kPanelKeys)
      store(row + j / 2, to_pairs(load(row + j), load(row + j + kLanes)));
  }
}

// As add_values, but no value that is hidden from a row meets its weight of 0: it may be NaN or
// infinite. `weights` and `values` are those of the keys from `first_key` on.
static void add_visible_values(const TaskContext& context, const Tile& tile, int64_t first_key,
                               int64_t keys, const float* weights, const ValueRows& values,
                               const float* rescale, float* outputs) {
  const Problem& problem = context.problem;
  for (int64_t r = 0; r < tile.row_count; ++r) {
    const int64_t row = tile.first_row + r;
    for (int64_t d = 0; rescale && d < problem.value_dim; ++d) outputs[d] *= rescale[r];
    for (int64_t key = 0; key < keys; ++key) {
      const float weight = weights[key] * problem.value_scale;
      if (weights[key] == 0.0f && !row_sees_key(context, row, first_key + key)) continue;
      const char* value = values.first_row + key * values.stride_bytes;
      for (int64_t d = 0; d < problem.value_dim; ++d)
        outputs[d] += weight * read_element(value, values.dtype, d);
    }
    weights += kBlockKeys;
    outputs += context.value_width;
  }
}

// Adds values in place, chunk by chunk. Only keys that some row of the task sees have values that
// may be read.
static void add_values_in_place(const TaskContext& context, const KeyBlock& block, const Tile& tile,
                                const KeyRange& keys, const float* weights, bool skips_hidden) {
  const Problem& problem = context.problem;
  const int64_t width = context.value_width;
  const int64_t begin = max(keys.begin, block.visible.begin);
  const float* rescale = context.workspace.rescale + tile.first_row;
  float* const outputs = context.state.values + tile.first_row * width;
  ChunkRows rows;
  for (int64_t j = begin; j < keys.end; j += rows.count) {
    rows = find_rows(problem, context.task, &Chunk::value, block.first_key + j,
                     block.first_key + keys.end);
    ValueRows values;
    values.first_row = rows.first_row;
    values.stride_bytes = rows.stride_bytes;
    values.dtype = problem.stored_dtype;
    if (skips_hidden)
      add_visible_values(context, tile, block.first_key + j, rows.count, weights + j, values,
                         rescale, outputs);
    else
      add_values(tile.row_count, weights + j, values, rows.count, width, rescale, outputs);
    rescale = nullptr;
  }
}

// Adds int8 values in place, as pairs of bfloat16 of two keys each.
static void add_int8_pairs_in_place(const TaskContext& context, const KeyBlock& block,
                                    const Tile& tile, const KeyRange& keys, const float* weights) {
  const int64_t width = context.value_width;
  const int64_t key_count = keys.end - keys.begin;
  const char* addresses[kBlockKeys];
  list_rows(context.problem, context.task, &Chunk::value, block.first_key + keys.begin,
            block.first_key + keys.end, addresses);
  if (key_count % 2) addresses[key_count] = addresses[key_count - 1];  // its weight is 0
  ValueRows values;
  values.stride_bytes = 2 * width;
  values.dtype = Dtype::int8;
  values.addresses = addresses;
  add_values_as<Dtype::int8, kHasBf16Dot>(
      tile.row_count, weights + keys.begin / 2, values, (key_count + 1) / 2, width,
      context.workspace.rescale + tile.first_row, context.state.values + tile.first_row * width);
}

static void add_packed_values(TaskContext& context, const KeyBlock& block, const Tile& tile,
                              const KeyRange& keys, const float* weights) {
  const int64_t width = context.value_width;
  const int64_t keys_per_row = context.value_pairs ? 2 : 1;
  const int64_t key_count = keys.end - keys.begin;
  const float* rescale = context.workspace.rescale + tile.first_row;
  float* const outputs = context.state.values + tile.first_row * width;
  ValueRows values;
  values.first_row = reinterpret_cast<const char*>(prepare_value_rows(context, block) +
                                                   keys.begin / keys_per_row * width);
  values.stride_bytes = width * int64_t(sizeof(float));
  values.packed = true;
  if (context.value_pairs)
    add_values_as<Dtype::float32, kHasBf16Dot>(tile.row_count, weights + keys.begin / 2, values,
                                               (key_count + 1) / 2, width, rescale, outputs);
  else
    add_values_in_tiles<kPackedRows, kPackedVectors, Dtype::float32, false>(
        tile.row_count, weights + keys.begin, values, key_count, width, rescale, outputs);
}

// Returns whether hidden keys of a block must be skipped one by one, because 0 x NaN is NaN and 0 x
// inf too.
static bool must_skip_hidden_values(TaskContext& context, const KeyBlock& block, const Tile& tile) {
  const bool hides = context.scores.hides[row_index(context, block.index, tile.first_row)];
  return hides && !has_finite_values(context, block);
}

// Adds weights . values of a block to the outputs of a tile. `weights` are pairs of bfloat16 where
// the context has value pairs and hidden keys need not be skipped.
static void add_tile_values(TaskContext& context, const KeyBlock& block, const Tile& tile,
                            const KeyRange& keys, const float* weights, bool skips_hidden) {
  if (skips_hidden || (context.values_in_place && !context.value_pairs))
    add_values_in_place(context, block, tile, keys, weights, skips_hidden);
  else if (context.values_in_place)
    add_int8_pairs_in_place(context, block, tile, keys, weights);
  else
    add_packed_values(context, block, tile, keys, weights);
  // The factors have been applied; later blocks of the task add to the result.
  for (int64_t r = 0; r < tile.row_count; ++r) context.workspace.rescale[tile.first_row + r] = 1.0f;
}

}  // namespace keywise::KEYWISE_TARGET
