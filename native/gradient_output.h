// Gradients of queries, keys and values from the sums of tasks: added in order, scaled, and rounded
// to the problem's dtype.
#pragma once

#include <cstdint>

#include "backward.h"
#include "half.h"
#include "simd.h"

namespace keywise::KEYWISE_TARGET {

// Writes (sums[0] + sums[1] + ...) x factor, `dim` numbers from `offset` on in each, as elements
// from `first` on. The first sums are overwritten.
static void write_gradient(float* const* sums, int64_t sum_count, int64_t offset, int64_t dim,
                           float factor, Dtype dtype, void* gradient, int64_t first) {
  float* const total = sums[0] + offset;
  for (int64_t i = 1; i < sum_count; ++i)
    for (int64_t d = 0; d < dim; d += kLanes)
      store(total + d, add(load(total + d), load(sums[i] + offset + d)));
  if (dtype == Dtype::float32) {
    float* const output = static_cast<float*>(gradient) + first;
    for (int64_t d = 0; d < dim; ++d) output[d] = total[d] * factor;
  } else if (dtype == Dtype::float16) {
    uint16_t* const output = static_cast<uint16_t*>(gradient) + first;
    for (int64_t d = 0; d < dim; ++d) output[d] = narrow_to_float16(total[d] * factor);
  } else {
    uint16_t* const output = static_cast<uint16_t*>(gradient) + first;
    for (int64_t d = 0; d < dim; ++d) output[d] = narrow_to_bfloat16(total[d] * factor);
  }
}

// Writes the gradients of the queries of a task's rows from the sums of its head's splits of keys.
static void write_query_gradients(const BackwardProblem& backward, const Task& task,
                                  float* const* sums, int64_t sum_count) {
  const Problem& problem = backward.forward;
  const int64_t group = problem.group();
  const int64_t width = key_width(problem);
  for (int64_t r = 0; r < task.rows(); ++r) {
    const int64_t head = task.item * problem.query_heads + task.query_head(r, group);
    const int64_t query = head * problem.queries + task.token(r, group);
    write_gradient(sums, sum_count, (task.first_row + r) * width, problem.head_dim, backward.scale,
                   problem.dtype, backward.query_gradient, query * problem.head_dim);
  }
}

// Writes the gradients of a task's keys and values from the sums of its head's splits of rows.
static void write_key_gradients(const BackwardProblem& backward, const Task& task,
                                float* const* key_sums, float* const* value_sums,
                                int64_t sum_count) {
  const Problem& problem = backward.forward;
  const int64_t first = (task.item * problem.key_heads + task.key_head) * problem.keys;
  for (int64_t key = task.first_key; key < task.last_key; ++key) {
    if (backward.key_gradient)
      write_gradient(key_sums, sum_count, key * key_width(problem), problem.head_dim,
                     backward.scale, problem.dtype, backward.key_gradient,
                     (first + key) * problem.head_dim);
    if (backward.value_gradient)
      write_gradient(value_sums, sum_count, key * problem.value_width(), problem.value_dim, 1.0f,
                     problem.dtype, backward.value_gradient, (first + key) * problem.value_dim);
  }
}

}  // namespace keywise::KEYWISE_TARGET
