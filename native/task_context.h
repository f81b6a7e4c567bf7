// What the steps of one task share: its buffers, and choices that follow from sizes and options.
#pragma once

#include <cstdint>

#include "elements.h"
#include "simd.h"
#include "visible_keys.h"

namespace keywise::KEYWISE_TARGET {

struct TaskContext {
  const Problem& problem;
  const Task& task;
  const Workspace& workspace;
  const State& state;
  const ScoreBuffer& scores;

  int64_t rows = 0;
  int64_t group = 0;
  int64_t key_depth = 0;    // lanes of a packed key
  int64_t value_width = 0;  // floats of a row of State::values
  bool key_pairs = false;   // keys are multiplied as pairs of bfloat16
  bool value_pairs = false;
  bool keys_in_place = false;  // read where the caller has them, instead of packed
  bool values_in_place = false;
  bool masks_by_key = false;  // the mask has rules that are looked up key by key
  VisibleKeys visible = {};   // to some row of the task

  // Numbers of the blocks whose keys and values are packed in the workspace, and of the block that
  // values_are_finite is about; -1 for none.
  int64_t packed_key_block = -1;
  int64_t packed_value_block = -1;
  int64_t examined_block = -1;
  bool values_are_finite = true;
};

// A block of keys of a task.
struct KeyBlock {
  int64_t index = 0;
  int64_t first_key = 0;
  int64_t key_count = 0;
  KeyRange visible;         // to some row of the task, counted from first_key
  int64_t first_range = 0;  // first segment range that meets the block
};

// The batch item, query head and query of a row.
struct RowPlace {
  int64_t item = 0;
  int64_t head = 0;
  int64_t token = 0;
};

static inline RowPlace find_place(const Task& task, int64_t row, int64_t group) {
  return {task.item, task.query_head(row, group), task.token(row, group)};
}

static inline RowPlace find_place(const TaskContext& context, int64_t row) {
  return find_place(context.task, row, context.group);
}

// Rows of a task that are computed together.
struct Tile {
  int64_t first_row = 0;
  int64_t row_count = 0;
};

// Few rows use each key a few times only: packing it would cost more than converting it whenever it
// is read. The same holds for so few keys that a panel would not be filled. A backward pass
// computes the scores again from packed keys, and its weights are exact only if they are the same.
static inline bool scores_in_place(const Problem& problem, const Task& task) {
  if (task.packed || problem.query_lse) return false;
  const bool few_keys = task.rows() <= kTileRows && task.last_key - task.first_key <= kLanes;
  return task.rows() <= kMaxRowsInPlace || few_keys;
}

static inline TaskContext make_context(const Problem& problem, const Task& task,
                                       const Workspace& workspace, const State& state,
                                       const ScoreBuffer& scores) {
  TaskContext context{problem, task, workspace, state, scores};
  context.rows = task.rows();
  context.group = problem.group();
  context.key_pairs = uses_bf16_pairs(problem);
  context.key_depth = key_depth(problem, context.key_pairs);
  context.value_width = problem.value_width();
  context.keys_in_place = scores_in_place(problem, task);
  const int64_t max_tiles =
      problem.dtype == Dtype::float32 ? kMaxFloat32TilesInPlace : kMaxTilesInPlace;
  context.values_in_place = !task.packed && !problem.rescales_values() &&
                            task.rows() <= max_tiles * kTileRows &&
                            problem.value_dim == context.value_width;
  context.value_pairs =
      context.key_pairs && (!context.values_in_place || problem.stored_dtype == Dtype::int8);
  context.masks_by_key = problem.visibility.documents || problem.visibility.allowed;
  context.visible = find_visible_keys(problem, task);
  return context;
}

static inline KeyBlock make_block(const TaskContext& context, int64_t index) {
  KeyBlock block;
  block.index = index;
  block.first_key = context.task.first_key + index * kBlockKeys;
  block.key_count = min(kBlockKeys, context.task.last_key - block.first_key);
  block.visible = clip_to_block(context.visible, block.first_key, block.key_count);
  if (context.scores.range_count)
    block.first_range = context.problem.statistics.ranges_ended(block.first_key);
  return block;
}

static inline Tile make_tile(const TaskContext& context, int64_t first_row) {
  return {first_row, min(kTileRows, context.rows - first_row)};
}

// Returns the index of a row in a block of the score buffer.
static inline int64_t row_index(const TaskContext& context, int64_t block, int64_t row) {
  return block * context.rows + row;
}

static inline float* row_scores(const TaskContext& context, int64_t block, int64_t row) {
  return context.scores.weights + row_index(context, block, row) * kBlockKeys;
}

// Returns the keys of a block that a tile has scores of, counted from the block's first key: from
// the first panel.
static inline KeyRange scored_keys(const TaskContext& context, const KeyBlock& block,
                                   const Tile& tile) {
  const int64_t index = row_index(context, block.index, tile.first_row);
  return {context.scores.begin[index], context.scores.end[index]};
}

}  // namespace keywise::KEYWISE_TARGET
