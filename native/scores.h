// Step 1 of a task: the scores of a tile of rows against a block of keys.
//
// Inputs: packed queries, the block's keys. Outputs: scores in the score buffer after softcap, bias
// and mask, in units of Problem::score_unit; which keys were written and whether a row hides one;
// the largest score of every lane in Workspace::lane_max. Accumulators: float32 (score_tiles.h).
// Tail rule: whole panels are written; a score without a visible key is -inf.
#pragma once

#include <cstdint>

#include "chunk_rows.h"
#include "elements.h"
#include "exp.h"
#include "mask.h"
#include "pack.h"
#include "score_tiles.h"
#include "simd.h"
#include "task_context.h"
#include "visible_keys.h"

namespace keywise::KEYWISE_TARGET {

// Applies scale, softcap and bias to the scores [begin, end) of a row against the keys from
// first_key on. `block_bias` has room for a block. Where `slopes` is not null, it receives the
// derivative of the softcap.
static void transform_scores(const Problem& problem, const RowPlace& place, int64_t first_key,
                             int64_t begin, int64_t end, float* block_bias, float* scores,
                             float* slopes) {
  const Bias& bias = problem.bias;
  if (bias.data) {
    const int64_t bias_end = min(end, problem.keys - first_key);
    const int64_t first =
        place.item * bias.stride[0] + place.head * bias.stride[1] + place.token * bias.stride[2];
    for (int64_t j = begin; j < bias_end; ++j)
      block_bias[j] = read_element(bias.data, bias.dtype, first + (first_key + j) * bias.stride[3]);
    for (int64_t j = bias_end; j < end; ++j) block_bias[j] = 0.0f;
  }
  const bool has_softcap = problem.softcap > 0.0f;
  const Vec scale = broadcast(has_softcap ? problem.scale / problem.softcap : problem.scale);
  const Vec softcap = broadcast(problem.softcap);
  for (int64_t j = begin; j < end; j += kLanes) {
    Vec score = mul(load(scores + j), scale);
    if (has_softcap) {
      score = compute_tanh(score);
      if (slopes) store(slopes + j, sub(broadcast(1.0f), mul(score, score)));
      score = mul(softcap, score);
    }
    if (bias.data) score = add(score, load(block_bias + j));
    store(scores + j, score);
  }
}

// Returns the largest score per lane of the panels [begin, end) and of `lane_max`; NaN is skipped.
static inline Vec update_lane_max(const float* scores, int64_t begin, int64_t end, Vec lane_max) {
  Vec other_max = lane_max;
  for (int64_t j = begin; j < end; j += kPanelKeys) {
    lane_max = max(load(scores + j), lane_max);
    other_max = max(load(scores + j + kLanes), other_max);
  }
  return max(other_max, lane_max);
}

KEYWISE_INLINE void prefetch_scales(const TaskContext& context, Tensor Chunk::* side,
                                    int64_t first_key, int64_t last_key) {
  constexpr int64_t kScalesPerLine = kCacheLineBytes / int64_t(sizeof(float));
  ChunkRows rows;
  for (int64_t key = first_key; key < last_key; key += rows.count) {
    rows = find_rows(context.problem, context.task, side, key, last_key);
    for (int64_t j = 0; j < rows.count; j += kScalesPerLine)
      prefetch(reinterpret_cast<const char*>(rows.scales + j));
  }
}

// Returns what a tile prefetches while it computes a panel: a part of the keys of the next block,
// which this task packs itself. Panels and tiles prefetch equal parts.
static PrefetchStream choose_prefetch(const TaskContext& context, const KeyBlock& block,
                                      const Tile& tile, int64_t key, const float* panel) {
  const Problem& problem = context.problem;
  const int64_t row_bytes = problem.head_dim * bytes_of(problem.stored_dtype);
  if (!context.task.packed) {
    const ChunkRows keys = find_rows(problem, context.task, &Chunk::key, block.first_key,
                                     block.first_key + block.key_count);
    if (keys.stride_bytes == row_bytes) {
      const int64_t tile_offset = tile.first_row / kTileRows * context.key_depth * kCacheLineBytes;
      return {keys.first_row + (kBlockKeys + key) * row_bytes + tile_offset, kCacheLineBytes};
    }
  }
  return {reinterpret_cast<const char*>(panel), 0};
}

// Computes the scores of keys in place; those behind the last key become 0.
static void score_keys_in_place(const TaskContext& context, const KeyBlock& block, const Tile& tile,
                                const KeyRange& panels, int64_t last_key, float* scores) {
  const int64_t query_stride = round_up(context.key_depth, kLanes);
  const float* queries = context.workspace.queries + tile.first_row * query_stride;
  const int64_t end = block.first_key + last_key;
  ChunkRows keys;
  for (int64_t key = block.first_key + panels.begin; key < end; key += keys.count) {
    keys = find_rows(context.problem, context.task, &Chunk::key, key, end);
    for (int64_t r = 0; r < tile.row_count; r += kMaxRowsInPlace)
      score_rows_in_place(tile.row_count - r, context.problem, keys, context.key_pairs,
                          queries + r * query_stride,
                          scores + r * kBlockKeys + key - block.first_key);
  }
  for (int64_t r = 0; r < tile.row_count; ++r)
    for (int64_t j = last_key; j < panels.end; ++j) scores[r * kBlockKeys + j] = 0.0f;
}

static void score_packed_keys(TaskContext& context, const KeyBlock& block, const Tile& tile,
                              const KeyRange& panels, int64_t last_key, float* scores) {
  const bool pairs = context.key_pairs;
  const auto full_panel = pairs ? compute_score_rows<kTileRows, 2, kHasBf16Dot>
                                : compute_score_rows<kTileRows, 2, false>;
  const auto half_panel = pairs ? compute_score_rows<kTileRows, 1, kHasBf16Dot>
                                : compute_score_rows<kTileRows, 1, false>;
  const int64_t depth = context.key_depth;
  const float* queries = context.workspace.queries + tile.first_row * depth;
  const float* block_panels = prepare_key_panels(context, block);
  for (int64_t j = panels.begin; j < panels.end; j += kPanelKeys) {
    const float* panel = block_panels + j * depth;
    const auto compute_rows = last_key - j > kLanes ? full_panel : half_panel;
    compute_rows(tile.row_count, queries, panel, depth,
                 choose_prefetch(context, block, tile, j, panel), scores + j);
  }
}

// Multiplies scores by the scales of int8 keys.
static void scale_scores(const TaskContext& context, const KeyBlock& block, const Tile& tile,
                         int64_t begin, int64_t end, float* scores) {
  ChunkRows keys;
  for (int64_t j = begin; j < end; j += keys.count) {
    keys = find_rows(context.problem, context.task, &Chunk::key, block.first_key + j,
                     block.first_key + end);
    multiply_by_scales(tile.row_count, scores + j, keys.scales, keys.count, scores + j);
  }
}

static void compute_tile_scores(TaskContext& context, const KeyBlock& block, const Tile& tile) {
  const Problem& problem = context.problem;
  const Task& task = context.task;
  const Workspace& workspace = context.workspace;
  const TileVisibility& visible = workspace.tile_visible[tile.first_row / kTileRows];
  KeyRange keys = clip_to_block(visible.any, block.first_key, block.key_count);
  if (is_empty(keys)) keys = {};
  const KeyRange panels{round_down(keys.begin, kPanelKeys), round_up(keys.end, kPanelKeys)};
  const int64_t index = row_index(context, block.index, tile.first_row);
  context.scores.begin[index] = int32_t(panels.begin);
  context.scores.end[index] = int32_t(keys.end);
  if (is_empty(keys)) return;

  if (problem.stored_dtype == Dtype::int8) {
    // The scales arrive while scores are computed.
    prefetch_scales(context, &Chunk::key, block.first_key + keys.begin, block.first_key + keys.end);
    prefetch_scales(context, &Chunk::value, block.first_key + keys.begin,
                    block.first_key + keys.end);
  }
  float* scores = row_scores(context, block.index, tile.first_row);
  if (context.keys_in_place)
    score_keys_in_place(context, block, tile, panels, keys.end, scores);
  else
    score_packed_keys(context, block, tile, panels, keys.end, scores);
  if (problem.stored_dtype == Dtype::int8)
    scale_scores(context, block, tile, panels.begin, keys.end, scores);

  // A bias of -inf hides as well. Keys behind the last are hidden too, but have no values that
  // could leak.
  const bool hides =
      context.masks_by_key || problem.bias.data ||
      !contains(visible.all, block.first_key + panels.begin, block.first_key + keys.end);
  const bool transforms = problem.transforms_scores();
  for (int64_t r = 0; r < tile.row_count; ++r, scores += kBlockKeys) {
    const int64_t row = tile.first_row + r;
    if (transforms)
      transform_scores(problem, find_place(context, row), block.first_key, panels.begin, panels.end,
                       workspace.block_row, scores, nullptr);
    if (hides || keys.end < panels.end)
      hide_invisible(workspace.visible[row], block.first_key, panels.begin, panels.end, scores);
    if (context.masks_by_key)
      hide_by_key(problem, task.item, task.query_head(row, context.group),
                  task.token(row, context.group), block.first_key, panels.begin, keys.end, scores);
    float* lane_max = workspace.lane_max + row * kLanes;
    store(lane_max, update_lane_max(scores, panels.begin, panels.end, load(lane_max)));
  }
  context.scores.hides[index] = hides;
}

}  // namespace keywise::KEYWISE_TARGET
