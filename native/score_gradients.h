// Weights and the gradients of scores, for a tile of rows against a block of keys.
//
// Inputs: packed rows, panels of keys and values, the terms of rows. Outputs: weights P times
// dropout, and gradients dS of the scores, both [rows][kBlockKeys], 0 for hidden keys.
// Accumulators: float32. Tail rule: whole panels are written.
#pragma once

#include <cstdint>

#include "backward.h"
#include "dropout.h"
#include "exp.h"
#include "mask.h"
#include "normalize.h"
#include "score_tiles.h"
#include "scores.h"
#include "simd.h"
#include "task_context.h"

namespace keywise::KEYWISE_TARGET {

// What the steps of a backward task share. Rows are counted from the first of the head.
struct GradientContext {
  const BackwardProblem& backward;
  const Problem& problem;  // of the forward pass
  const Task& task;
  const GradientRows& rows;
  const GradientWorkspace& workspace;
  const GradientSums& sums;
  int64_t group = 1;
  bool masks_by_key = false;
  // Whether numbers are NaN or infinite, so that hidden keys must be told from weights of 0.
  bool is_exact = false;

  RowPlace place(int64_t row) const {
    return {task.item, task.key_head * group + row % group, row / group};
  }
};

// Some keys of the task, at most kBlockKeys, and which of them some row sees.
struct GradientBlock {
  int64_t first_key = 0;
  int64_t key_count = 0;
  KeyRange visible;  // counted from first_key
};

static inline bool row_sees_key(const GradientContext& context, int64_t row, int64_t key) {
  const RowPlace place = context.place(row);
  return sees_key(context.problem, place.item, place.head, place.token, context.rows.visible[row],
                  key);
}

// Computes products[rows][kBlockKeys] of a tile of packed rows with the panels of the keys
// [begin, end), which begin with a panel. `panels` are those from the block's first key on.
static void multiply_panels(int64_t row_count, const float* packed, const float* panels,
                            int64_t depth, const KeyRange& keys, float* products) {
  for (int64_t j = keys.begin; j < keys.end; j += kPanelKeys) {
    const float* const panel = panels + j * depth;
    const auto compute_rows = keys.end - j > kLanes ? compute_score_rows<kTileRows, 2, false>
                                                    : compute_score_rows<kTileRows, 1, false>;
    compute_rows(row_count, packed, panel, depth, {reinterpret_cast<const char*>(panel), 0},
                 products + j);
  }
}

// Returns the keys of a block that a tile sees, from the first panel.
static KeyRange find_tile_keys(const GradientContext& context, const GradientBlock& block,
                               const Tile& tile) {
  const TileVisibility& visible = context.rows.tile_visible[tile.first_row / kTileRows];
  const KeyRange keys = clip_to_block(visible.any, block.first_key, block.key_count);
  if (is_empty(keys)) return {};
  return {round_down(keys.begin, kPanelKeys), keys.end};
}

// Computes the scores of a tile again, after softcap, bias and mask, in units of
// Problem::score_unit.
static void recompute_scores(const GradientContext& context, const GradientBlock& block,
                             const Tile& tile, const KeyRange& keys, float* scores) {
  const Problem& problem = context.problem;
  const GradientWorkspace& workspace = context.workspace;
  multiply_panels(tile.row_count,
                  context.rows.queries + packed_row_offset(tile.first_row, problem.head_dim),
                  workspace.key_panels, problem.head_dim, keys, scores);
  const int64_t end = round_up(keys.end, kPanelKeys);
  const TileVisibility& visible = context.rows.tile_visible[tile.first_row / kTileRows];
  const bool hides =
      context.masks_by_key || keys.end < end ||
      !contains(visible.all, block.first_key + keys.begin, block.first_key + keys.end);
  const bool transforms = problem.transforms_scores();
  for (int64_t r = 0; r < tile.row_count; ++r, scores += kBlockKeys) {
    const int64_t row = tile.first_row + r;
    const RowPlace place = context.place(row);
    if (transforms)
      transform_scores(problem, place, block.first_key, keys.begin, end, workspace.bias_row, scores,
                       problem.softcap > 0.0f ? workspace.slopes + r * kBlockKeys : nullptr);
    if (hides) hide_invisible(context.rows.visible[row], block.first_key, keys.begin, end, scores);
    if (context.masks_by_key)
      hide_by_key(problem, place.item, place.head, place.token, block.first_key, keys.begin,
                  keys.end, scores);
  }
}

// Weights below it count as 0: their products with infinite numbers would be NaN.
static constexpr float kSmallestWeight = 0x1p-126f;

// What the weights and gradients of a row are computed with.
struct RowGradient {
  Vec unit;
  Vec lse;
  Vec lse_rest;
  Vec shift;
  // Minus the gradient of the entropy times ln 2.
  Vec entropy_factor;
  // Weights below it have gradient 0, whatever the rest is: 2^-126, or -inf for exact results.
  Vec limit;
};

// Computes V vectors of weights of a row; x becomes the logarithms of the weights in base 2.
template <int V>
KEYWISE_INLINE void recompute_weights(const RowGradient& row, const float* scores, Vec* x,
                                      Vec* weights) {
  const Vec minus_lse = sub(zero(), row.lse);
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    const Vec difference = mul_add(load(scores + v * kLanes), row.unit, minus_lse);
    x[v] = mul(sub(difference, row.lse_rest), broadcast(kLog2e));
  }
  exp2_nonpositive<V>(x, weights);
}

template <int V, bool kExtra>
KEYWISE_INLINE void compute_gradient_vectors(const RowGradient& row, const float* added,
                                             const float* factors, float* weights, float* scores) {
  Vec x[V];
  Vec p[V];
  recompute_weights<V>(row, weights, x, p);
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    Vec gradient = load(scores + v * kLanes);
    Vec kept = p[v];
    if (kExtra) {
      const Vec factor = load(factors + v * kLanes);
      kept = mul(kept, factor);
      gradient = mul_add(gradient, factor, load(added + v * kLanes));
      gradient = mul_add(row.entropy_factor, x[v], gradient);
    }
    gradient = mul(p[v], add(gradient, row.shift));
    store(scores + v * kLanes, if_less(p[v], row.limit, zero(), gradient));
    store(weights + v * kLanes, kept);
  }
}

// Replaces the scores [begin, end) of a row by its weights, and dP by dS, in whole panels.
template <bool kExtra>
static void compute_row_gradients(const RowGradient& row, int64_t begin, int64_t end,
                                  const float* added, const float* factors, float* weights,
                                  float* scores) {
  constexpr int kVectors = 2 * kSoftmaxPanels;
  int64_t j = begin;
  for (; j + kVectors * kLanes <= end; j += kVectors * kLanes)
    compute_gradient_vectors<kVectors, kExtra>(row, added + j, factors + j, weights + j,
                                               scores + j);
  for (; j < end; j += 2 * kLanes)
    compute_gradient_vectors<2, kExtra>(row, added + j, factors + j, weights + j, scores + j);
}

// Replaces the scores [begin, end) of a row by its weights, times `factors` where it is not null.
static void compute_row_weights(const RowGradient& row, int64_t begin, int64_t end,
                                const float* factors, float* weights) {
  for (int64_t j = begin; j < end; j += 2 * kLanes) {
    Vec x[2];
    Vec p[2];
    recompute_weights<2>(row, weights + j, x, p);
    for (int v = 0; v < 2; ++v) {
      const int64_t place = j + v * kLanes;
      store(weights + place, factors ? mul(p[v], load(factors + place)) : p[v]);
    }
  }
}

// Returns the index of a row in the arrays of statistics, -1 for a row without statistics.
static inline int64_t gradient_statistics_index(const Problem& problem, const RowPlace& place) {
  const Statistics& statistics = problem.statistics;
  if (place.token < statistics.first_query || place.token >= statistics.last_query) return -1;
  const int64_t head = place.item * problem.query_heads + place.head;
  return head * (statistics.last_query - statistics.first_query) + place.token -
         statistics.first_query;
}

// Writes what key mass and segment mass add to dP of a row, in whole panels.
static void compute_added_row(const GradientContext& context, const GradientBlock& block,
                              int64_t row, int64_t begin, int64_t end) {
  const BackwardProblem& backward = context.backward;
  const Problem& problem = context.problem;
  const Statistics& statistics = problem.statistics;
  const RowPlace place = context.place(row);
  float* const added = context.workspace.added_row;
  for (int64_t j = begin; j < end; ++j) added[j] = 0.0f;
  const int64_t last = min(end, block.key_count);
  const float query_weight = context.rows.query_weight[row];
  if (backward.key_mass_gradient && query_weight != 0.0f) {
    const float* const gradient = backward.key_mass_gradient +
                                  (place.item * problem.query_heads + place.head) * problem.keys +
                                  block.first_key;
    for (int64_t j = begin; j < last; ++j) added[j] = query_weight * gradient[j];
  }
  const int64_t index = gradient_statistics_index(problem, place);
  if (!backward.segment_mass_gradient || index < 0) return;
  const float* const gradient = backward.segment_mass_gradient + index * statistics.segments;
  for (int64_t range = statistics.ranges_ended(block.first_key + begin);
       range < statistics.segment_range_count; ++range) {
    const int64_t* const bounds = statistics.segment_ranges + 3 * range;
    const int64_t range_begin = clamp(bounds[0] - block.first_key, begin, last);
    const int64_t range_end = clamp(bounds[1] - block.first_key, begin, last);
    if (bounds[0] - block.first_key >= last) break;
    for (int64_t j = range_begin; j < range_end; ++j) added[j] += gradient[bounds[2]];
  }
}

// Makes hidden keys 0 where a number that is not finite may have reached them.
static void clear_hidden(const GradientContext& context, const GradientBlock& block, int64_t row,
                         int64_t begin, int64_t end, float* weights, float* scores) {
  for (int64_t j = begin; j < end; ++j) {
    if (j < block.key_count && row_sees_key(context, row, block.first_key + j)) continue;
    weights[j] = 0.0f;
    scores[j] = 0.0f;
  }
}

// Adds the gradients of the scores [begin, end) of a row to those of the bias.
static void add_bias_gradient(const GradientContext& context, const GradientBlock& block,
                              int64_t row, int64_t begin, int64_t end, const float* scores) {
  const BiasSums& bias = context.sums.bias;
  float* const sums =
      bias.sums + row % context.group * bias.head_stride + row / context.group * bias.query_stride;
  if (bias.key_stride == 0) {
    float total = 0.0f;
    for (int64_t j = begin; j < end; ++j) total += scores[j];
    sums[0] += total;
    return;
  }
  float* const keys = sums + block.first_key - bias.first_key;
  for (int64_t j = begin; j < end; ++j) keys[j] += scores[j];
}

// Multiplies gradients of scores by the derivatives of the softcap. That of a hidden score may be
// NaN.
static void multiply_by_slopes(const float* slopes, int64_t begin, int64_t end, float* scores) {
  for (int64_t j = begin; j < end; j += kLanes) {
    const Vec score = load(scores + j);
    const Vec product = mul(score, load(slopes + j));
    store(scores + j, if_less(abs(score), broadcast(kSmallestWeight), zero(), product));
  }
}

// Computes weights and gradients of a tile of rows against some keys of a block: [rows][kBlockKeys]
// each.
static void compute_tile_gradients(const GradientContext& context, const GradientBlock& block,
                                   const Tile& tile, const KeyRange& keys, float* weights,
                                   float* scores) {
  const BackwardProblem& backward = context.backward;
  const Problem& problem = context.problem;
  const GradientWorkspace& workspace = context.workspace;
  recompute_scores(context, block, tile, keys, weights);
  const bool needs_scores = backward.needs_scores();
  if (needs_scores)
    multiply_panels(
        tile.row_count,
        context.rows.output_gradients + packed_row_offset(tile.first_row, problem.value_dim),
        workspace.value_panels, problem.value_dim, keys, scores);
  const int64_t end = round_up(keys.end, kPanelKeys);
  const bool has_extra_terms = backward.has_extra_terms();
  for (int64_t j = keys.begin; has_extra_terms && j < end; ++j) workspace.dropout_row[j] = 1.0f;
  for (int64_t r = 0; r < tile.row_count; ++r, weights += kBlockKeys, scores += kBlockKeys) {
    const int64_t row = tile.first_row + r;
    RowGradient terms;
    terms.unit = broadcast(problem.score_unit());
    terms.lse = broadcast(context.rows.lse[row]);
    terms.lse_rest = broadcast(context.rows.lse_rest[row]);
    terms.shift = broadcast(context.rows.shift[row]);
    terms.entropy_factor = broadcast(-kLn2 * context.rows.entropy_gradient[row]);
    terms.limit = broadcast(context.is_exact ? -kInfinity : kSmallestWeight);
    if (problem.dropout.is_active)
      compute_dropout_factors(problem, context.place(row), block.first_key, keys.begin, end,
                              workspace.dropout_row);
    if (!needs_scores) {
      compute_row_weights(terms, keys.begin, end,
                          problem.dropout.is_active ? workspace.dropout_row : nullptr, weights);
    } else if (has_extra_terms) {
      compute_added_row(context, block, row, keys.begin, end);
      compute_row_gradients<true>(terms, keys.begin, end, workspace.added_row,
                                  workspace.dropout_row, weights, scores);
    } else {
      compute_row_gradients<false>(terms, keys.begin, end, nullptr, nullptr, weights, scores);
    }
    if (context.is_exact) clear_hidden(context, block, row, keys.begin, end, weights, scores);
    if (!needs_scores) continue;
    if (context.sums.bias.sums)
      add_bias_gradient(context, block, row, keys.begin, keys.end, scores);
    if (problem.softcap > 0.0f)
      multiply_by_slopes(workspace.slopes + r * kBlockKeys, keys.begin, end, scores);
  }
}

}  // namespace keywise::KEYWISE_TARGET
