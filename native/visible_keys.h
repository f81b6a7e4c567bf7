// Which keys a row sees: two ranges per row from the rules that follow from positions alone.
// Documents and the boolean array are looked up key by key (mask.h).
//
// Used by the scheduler and by every target, which are compiled with different flags: internal
// linkage.
#pragma once

#include <cstdint>

#include "integers.h"
#include "problem.h"
#include "target.h"

namespace keywise {

static inline bool is_empty(const KeyRange& range) { return range.begin >= range.end; }

// Returns the keys from the first to the last of both ranges, gaps included.
static inline KeyRange join(const KeyRange& a, const KeyRange& b) {
  if (is_empty(a)) return b;
  if (is_empty(b)) return a;
  return {min(a.begin, b.begin), max(a.end, b.end)};
}

static inline KeyRange intersect(const KeyRange& a, const KeyRange& b) {
  return {max(a.begin, b.begin), min(a.end, b.end)};
}

static inline bool contains(const KeyRange& range, int64_t begin, int64_t end) {
  return range.begin <= begin && end <= range.end;
}

static inline bool contains(const VisibleKeys& visible, int64_t begin, int64_t end) {
  return contains(visible.near, begin, end) || contains(visible.kept, begin, end);
}

// Returns the part of a range inside a block of keys, counted from the block's first key.
static inline KeyRange clip_to_block(const KeyRange& range, int64_t first_key, int64_t key_count) {
  return {clamp(range.begin - first_key, 0, key_count), clamp(range.end - first_key, 0, key_count)};
}

// Returns the keys of a block from the first to the last visible one, counted from the block's
// first key.
static inline KeyRange clip_to_block(const VisibleKeys& visible, int64_t first_key,
                                     int64_t key_count) {
  return join(clip_to_block(visible.kept, first_key, key_count),
              clip_to_block(visible.near, first_key, key_count));
}

static inline int64_t query_position(const Problem& problem, int64_t item, int64_t token) {
  return problem.visibility.lengths[item] - problem.queries + token;
}

// Returns whether all queries of a batch item see the same keys.
static inline bool has_uniform_visibility(const Problem& problem) {
  const MaskRules& rules = problem.visibility;
  return !rules.causal && rules.left < 0 && rules.right < 0 && !rules.documents;
}

// Returns the part of a range of positions inside the task's keys, as keys of the problem.
static inline KeyRange clip_to_task(const KeyRange& positions, const MaskRules& rules,
                                    const Task& task) {
  return {clamp(positions.begin - rules.first_key, task.first_key, task.last_key),
          clamp(positions.end - rules.first_key, task.first_key, task.last_key)};
}

// Returns the keys of a task that the row of a token sees.
static inline VisibleKeys find_visible_keys(const Problem& problem, const Task& task,
                                            int64_t token) {
  const MaskRules& rules = problem.visibility;
  const int64_t position = query_position(problem, task.item, token);
  const int64_t start = rules.starts[task.item];
  int64_t end = rules.lengths[task.item];
  if (rules.causal) end = min(end, position + 1);
  // A query outside the sequence belongs to no document.
  if (rules.documents && (position < 0 || position >= rules.positions)) end = start;

  KeyRange near{start, end};
  if (rules.left >= 0) near.begin = max(near.begin, position - rules.left);
  if (rules.right >= 0) near.end = min(near.end, position + rules.right + 1);
  const KeyRange kept{start, min(start + rules.keep_first, end)};

  return {clip_to_task(kept, rules, task), clip_to_task(near, rules, task)};
}

// Returns the keys that some row of the task sees. The ranges of later tokens end later, except at
// the ends of documents.
static inline VisibleKeys find_visible_keys(const Problem& problem, const Task& task) {
  const int64_t group = problem.group();
  const int64_t first_token = task.token(0, group);
  const int64_t last_token = task.token(task.rows() - 1, group);
  VisibleKeys any = find_visible_keys(problem, task, first_token);
  for (int64_t token = problem.visibility.documents ? first_token : last_token; token <= last_token;
       ++token) {
    const VisibleKeys visible = find_visible_keys(problem, task, token);
    any.kept.end = max(any.kept.end, visible.kept.end);
    any.near.end = max(any.near.end, visible.near.end);
  }
  return any;
}

static inline TileVisibility combine_rows(const VisibleKeys* rows, int64_t row_count) {
  TileVisibility tile{rows[0], rows[0]};
  for (int64_t row = 1; row < row_count; ++row) {
    tile.any.kept = join(tile.any.kept, rows[row].kept);
    tile.any.near = join(tile.any.near, rows[row].near);
    tile.all.kept = intersect(tile.all.kept, rows[row].kept);
    tile.all.near = intersect(tile.all.near, rows[row].near);
  }
  return tile;
}

}  // namespace keywise
