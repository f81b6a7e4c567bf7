// Outputs of rows from their complete state: normalized and rounded to the problem's dtype, or the
// partial as it is.
//
// Inputs: State. Outputs: Problem::output or the arrays of the partial, State::inverse, and
// statistics of rows (statistics.h). Arithmetic: float32, rounded once. Tail rule: columns beyond
// value_dim are not written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "half.h"
#include "normalize.h"
#include "simd.h"
#include "softmax_state.h"
#include "statistics.h"

namespace keywise::KEYWISE_TARGET {

static void write_float16(const float* values, int64_t count, float factor, uint16_t* output) {
  for (int64_t d = 0; d < count; ++d) output[d] = narrow_to_float16(values[d] * factor);
}

static void write_bfloat16(const float* values, int64_t count, float factor, uint16_t* output) {
  for (int64_t d = 0; d < count; ++d) output[d] = narrow_to_bfloat16(values[d] * factor);
}

static void write_output(const Problem& problem, int64_t item, int64_t head, int64_t token,
                         const float* values, float inverse) {
  const int64_t* stride = problem.output_stride;
  const int64_t first = item * stride[0] + head * stride[1] + token * stride[2];
  if (problem.dtype == Dtype::float32) {
    float* output = static_cast<float*>(problem.output) + first;
    for (int64_t d = 0; d < problem.value_dim; ++d) output[d] = values[d] * inverse;
    return;
  }
  uint16_t* output = static_cast<uint16_t*>(problem.output) + first;
  if (problem.dtype == Dtype::float16)
    write_float16(values, problem.value_dim, inverse, output);
  else
    write_bfloat16(values, problem.value_dim, inverse, output);
}

static void write_partial(const Problem& problem, int64_t row, const SoftmaxState& softmax,
                          const float* values) {
  problem.running_max[row] = softmax.running_max * problem.score_unit();
  problem.running_sum[row] = softmax.running_sum;
  float* output = problem.values + row * problem.value_dim;
  __builtin_memcpy(output, values, std::size_t(problem.value_dim) * sizeof(float));
}

static void write_results(const Problem& problem, const Task& task, const State& state,
                          const ScoreBuffer* buffers, int64_t buffer_count) {
  const Statistics& statistics = problem.statistics;
  const int64_t group = problem.group();
  const int64_t width = problem.value_width();
  for (int64_t row = 0; row < task.rows(); ++row) {
    const int64_t token = task.token(row, group);
    const int64_t head = task.query_head(row, group);
    const SoftmaxState& softmax = state.softmax[row];
    const float* values = state.values + row * width;
    const Denominator denominator = compute_denominator(problem, head, softmax);
    if (problem.running_max)
      write_partial(problem, (task.item * problem.query_heads + head) * problem.queries + token,
                    softmax, values);
    else
      write_output(problem, task.item, head, token, values, denominator.inverse);
    state.inverse[row] = denominator.inverse;
    const int64_t index = statistics_index(problem, task, row);
    if (index >= 0)
      write_row_statistics(problem, index, denominator, softmax,
                           state.top_scores + row * statistics.top_k,
                           state.top_keys + row * statistics.top_k);
  }
  if (problem.wants_statistics && statistics.segment_mass)
    write_segment_mass(problem, task, state, buffers, buffer_count);
}

}  // namespace keywise::KEYWISE_TARGET
