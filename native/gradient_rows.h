// What rows need in all tasks of a backward pass: queries and output gradients in the layouts of
// the tiles, which keys they see, and the terms of their scores that do not depend on the key.
//
// Inputs: arrays as the caller has them. Outputs: GradientRows. Accumulators: float32; gradients of
// the sinks in float64. Tail rule: rows are padded with zeros to whole vectors.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "backward.h"
#include "elements.h"
#include "mask.h"
#include "normalize.h"
#include "pack.h"
#include "score_gradients.h"
#include "simd.h"
#include "visible_keys.h"

namespace keywise::KEYWISE_TARGET {

// Finds which keys the rows of a task and their tiles see.
static void find_row_visibility(const Problem& problem, const Task& task,
                                const GradientRows& rows) {
  const int64_t group = problem.group();
  const bool is_uniform = has_uniform_visibility(problem);
  VisibleKeys* const visible = rows.visible + task.first_row;
  for (int64_t row = 0; row < task.rows(); ++row) {
    const bool is_new_token = (task.first_row + row) % group == 0;
    if (row > 0 && (is_uniform || !is_new_token))
      visible[row] = visible[row - 1];
    else
      visible[row] = find_visible_keys(problem, task, task.token(row, group));
  }
  for (int64_t row = 0; row < task.rows(); row += kTileRows)
    rows.tile_visible[(task.first_row + row) / kTileRows] =
        combine_rows(visible + row, min(kTileRows, task.rows() - row));
}

// Copies the rows of a task, queries of a problem, as float32.
static void copy_rows(const Problem& problem, const Task& task, int64_t width, float* rows) {
  const int64_t group = problem.group();
  for (int64_t row = 0; row < task.rows(); ++row, rows += width) {
    const char* const source = row_address(problem.query, problem.dtype, task.item,
                                           task.query_head(row, group), task.token(row, group));
    for (int64_t d = 0; d < width; d += kLanes) {
      const int64_t left = problem.head_dim - d;
      store(rows + d, left > 0 ? load_elements(source, problem.dtype, d, left) : zero());
    }
  }
}

static bool are_finite(const float* numbers, int64_t count) {
  Vec products = zero();  // 0 x NaN and 0 x inf are NaN
  for (int64_t i = 0; i < count; i += kLanes)
    products = mul_add(load(numbers + i), zero(), products);
  return reduce_add(products) == 0.0f;
}

// Returns the product of a row of output gradients with the same row of the output.
static float multiply_by_output(const BackwardProblem& backward, const RowPlace& place,
                                const float* gradient) {
  const Problem& problem = backward.forward;
  const char* const output =
      row_address(backward.output, problem.dtype, place.item, place.head, place.token);
  Vec products = zero();
  for (int64_t d = 0; d < problem.value_dim; d += kLanes)
    products = mul_add(load(gradient + d),
                       load_elements(output, problem.dtype, d, problem.value_dim - d), products);
  return reduce_add(products);
}

static float find_query_weight(const Statistics& statistics, const RowPlace& place) {
  const int64_t* const stride = statistics.query_weight_stride;
  if (!statistics.query_weights) return 1.0f;
  return statistics
      .query_weights[place.item * stride[0] + place.head * stride[1] + place.token * stride[2]];
}

static float compute_sink_weight(const Problem& problem, const RowPlace& place, float lse) {
  return __builtin_exp2f((problem.sinks[place.head] - lse) * kLog2e);
}

// Computes the terms of a row, without that of key mass.
static void compute_row_terms(const BackwardProblem& backward, const GradientRows& rows,
                              const RowPlace& place, int64_t row) {
  const Problem& problem = backward.forward;
  const Statistics& statistics = problem.statistics;
  const int64_t head = place.item * problem.query_heads + place.head;
  const float lse = backward.lse[head * problem.queries + place.token];
  for (float* const terms :
       {rows.lse, rows.lse_rest, rows.shift, rows.entropy_gradient, rows.query_weight})
    terms[row] = 0.0f;
  if (lse == -kInfinity) return;  // a row without keys
  rows.lse[row] = lse < kInfinity ? lse : __builtin_nanf("");
  if (backward.lse_rest)
    rows.lse_rest[row] = backward.lse_rest[head * problem.queries + place.token];
  float shift =
      -multiply_by_output(backward, place, rows.gradient_rows + row * problem.value_width());
  const int64_t index = gradient_statistics_index(problem, place);
  if (index >= 0) {
    if (backward.lse_gradient) shift += backward.lse_gradient[index];
    if (backward.entropy_gradient) {
      // Without sinks, weights sum to 1.
      const float sink_weight = problem.sinks ? compute_sink_weight(problem, place, lse) : 0.0f;
      const float gradient = backward.entropy_gradient[index];
      rows.entropy_gradient[row] = gradient;
      shift -= gradient * (backward.entropy[index] + sink_weight);
    }
    if (backward.segment_mass_gradient) {
      double sum = 0.0;
      for (int64_t i = index * statistics.segments; i < (index + 1) * statistics.segments; ++i)
        sum += double(backward.segment_mass[i]) * double(backward.segment_mass_gradient[i]);
      shift -= float(sum);
    }
    if (backward.key_mass_gradient) rows.query_weight[row] = find_query_weight(statistics, place);
  }
  rows.shift[row] = shift;
}

static bool has_query_weights(const GradientRows& rows, const Tile& tile) {
  for (int64_t r = 0; r < tile.row_count; ++r)
    if (rows.query_weight[tile.first_row + r] != 0.0f) return true;
  return false;
}

// Subtracts query weight x sum(weight x gradient of key mass) from the shifts of a task's rows.
static void add_key_mass_terms(GradientContext& context) {
  const BackwardProblem& backward = context.backward;
  const Problem& problem = context.problem;
  const Task& task = context.task;
  const GradientWorkspace& workspace = context.workspace;
  const VisibleKeys visible = find_visible_keys(problem, task);
  for (int64_t first_key = 0; first_key < problem.keys; first_key += kBlockKeys) {
    GradientBlock block;
    block.first_key = first_key;
    block.key_count = min(kBlockKeys, problem.keys - first_key);
    block.visible = clip_to_block(visible, first_key, block.key_count);
    if (is_empty(block.visible)) continue;
    const int64_t first_panel = round_down(block.visible.begin, kPanelKeys);
    pack_keys(problem, task, first_key + first_panel, first_key + block.visible.end, false,
              workspace.key_panels + first_panel * problem.head_dim);
    for (int64_t first_row = task.first_row; first_row < task.last_row; first_row += kTileRows) {
      const Tile tile{first_row, min(kTileRows, task.last_row - first_row)};
      const KeyRange keys = find_tile_keys(context, block, tile);
      if (is_empty(keys) || !has_query_weights(context.rows, tile)) continue;
      recompute_scores(context, block, tile, keys, workspace.weights);
      for (int64_t r = 0; r < tile.row_count; ++r) {
        const int64_t row = first_row + r;
        const float query_weight = context.rows.query_weight[row];
        if (query_weight == 0.0f) continue;
        const RowPlace place = context.place(row);
        RowGradient terms;
        terms.unit = broadcast(problem.score_unit());
        terms.lse = broadcast(context.rows.lse[row]);
        terms.lse_rest = broadcast(context.rows.lse_rest[row]);
        float* const weights = workspace.weights + r * kBlockKeys;
        compute_row_weights(terms, keys.begin, round_up(keys.end, kPanelKeys), nullptr, weights);
        const float* const gradient =
            backward.key_mass_gradient +
            (place.item * problem.query_heads + place.head) * problem.keys + first_key;
        Vec sum = zero();
        for (int64_t j = keys.begin; j < keys.end; j += kLanes) {
          const Vec p = load(weights + j);
          const int64_t left = block.key_count - j;
          const Vec g = left >= kLanes ? load(gradient + j) : load_n(gradient + j, int(left));
          // A hidden key's gradient may be NaN.
          sum = add(sum, if_less(p, broadcast(kSmallestWeight), zero(), mul(p, g)));
        }
        context.rows.shift[row] -= query_weight * reduce_add(sum);
      }
    }
  }
}

// Fills GradientRows for the rows of a task, which begin with a chunk and are at most one.
static void prepare_gradient_rows(const BackwardProblem& backward, const Task& task,
                                  const GradientRows& rows, const GradientWorkspace& workspace) {
  const Problem& problem = backward.forward;
  const Problem& exchanged = backward.exchanged;
  const int64_t group = problem.group();
  const int64_t query_width = key_width(problem);
  const int64_t gradient_width = problem.value_width();
  find_row_visibility(problem, task, rows);
  pack_queries(problem, task, false, false,
               rows.queries + packed_row_offset(task.first_row, problem.head_dim));
  pack_queries(exchanged, task, false, false,
               rows.output_gradients + packed_row_offset(task.first_row, problem.value_dim));
  copy_rows(problem, task, query_width, rows.query_rows + task.first_row * query_width);
  copy_rows(exchanged, task, gradient_width, rows.gradient_rows + task.first_row * gradient_width);
  for (int64_t r = 0; r < task.rows(); ++r)
    compute_row_terms(backward, rows, find_place(task, r, group), task.first_row + r);
  if (backward.key_mass_gradient) {
    GradientContext context{backward, problem, task, rows, workspace, GradientSums{}};
    context.group = group;
    context.masks_by_key = problem.visibility.documents || problem.visibility.allowed;
    add_key_mass_terms(context);
  }
  for (int64_t row = task.first_row; row < task.last_row; row += kGradientBlockRows) {
    const int64_t count = min(kGradientBlockRows, task.last_row - row);
    bool is_finite = are_finite(rows.query_rows + row * query_width, count * query_width) &&
                     are_finite(rows.gradient_rows + row * gradient_width, count * gradient_width);
    for (int64_t r = row; r < row + count; ++r)
      is_finite &= rows.shift[r] * 0.0f == 0.0f && rows.lse[r] == rows.lse[r];
    rows.finite[row / kGradientBlockRows] = is_finite;
  }
  if (!backward.sinks_gradient) return;
  double* const sums = rows.sink_sums + task.first_row / kGradientChunkRows * group;
  for (int64_t head = 0; head < group; ++head) sums[head] = 0.0;
  for (int64_t r = 0; r < task.rows(); ++r) {
    const int64_t row = task.first_row + r;
    const RowPlace place = find_place(task, r, group);
    const float lse =
        backward
            .lse[(place.item * problem.query_heads + place.head) * problem.queries + place.token];
    if (lse == -kInfinity) continue;
    // Of all weights, that of the sink has no gradient of its own.
    const double weight = double(compute_sink_weight(problem, place, lse));
    sums[row % group] += weight * (double(rows.shift[row]) + double(rows.entropy_gradient[row]));
  }
}

}  // namespace keywise::KEYWISE_TARGET
