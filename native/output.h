// Outputs of rows from their complete state: normalized and rounded to the problem's dtype, or the
// partial as it is.
//
// Where sums of the unscaled values left the range of float32, the call is repeated with scaled
// values (Problem::value_scale), and results out of range give way to those of the repetition.
//
// Inputs: State. Outputs: Problem::output or the arrays of the partial, State::inverse, and
// statistics of rows (statistics.h). Arithmetic: float32, rounded once. Tail rule: columns beyond
// value_dim are not written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "elements.h"
#include "half.h"
#include "normalize.h"
#include "simd.h"
#include "softmax_state.h"
#include "statistics.h"

namespace keywise::KEYWISE_TARGET {

// Returns whether the weighted values of a row surely have a number of at least kTinySize, and no
// NaN or infinity. Ordinary values pass; find_value_range decides about the others.
static bool are_ordinary(const float* values, int64_t width) {
  constexpr float kMinMeanSquare = 0x1p-100f;
  static_assert(kMinMeanSquare > kTinySize * kTinySize);
  Vec even = zero();  // two chains hide the latency of a multiplication
  Vec odd = zero();
  int64_t d = 0;
  for (; d + kLanes < width; d += 2 * kLanes) {
    const Vec left = load(values + d);
    const Vec right = load(values + d + kLanes);
    even = mul_add(left, left, even);
    odd = mul_add(right, right, odd);
  }
  if (d < width) even = mul_add(load(values + d), load(values + d), even);
  const float sum = reduce_add(add(even, odd));
  return sum >= kMinMeanSquare * float(width) && sum < kInfinity;
}

// Returns how the weighted values of a row lie in the range of float32.
static unsigned find_value_range(const float* values, int64_t width) {
  if (are_ordinary(values, width)) return kInRange;
  Vec largest = zero();
  Vec products = zero();  // 0 x NaN and 0 x inf are NaN
  for (int64_t d = 0; d < width; d += kLanes) {
    const Vec x = load(values + d);
    largest = max(abs(x), largest);
    products = mul_add(x, zero(), products);
  }
  if (reduce_add(products) != 0.0f) return kAboveRange;
  const float size = reduce_max(largest);
  if (size >= kTinySize) return kInRange;
  return size > 0.0f ? kBelowRange : kAllZero;
}

static bool is_nan_or_infinite(float x) { return !(__builtin_fabsf(x) < kInfinity); }

// Returns whether a number from unscaled values gives way to the one from rescaled values.
static bool must_replace(const Problem& problem, float before, float after) {
  if (problem.value_scale > 1.0f)
    return __builtin_fabsf(before) < kTinySize && !is_nan_or_infinite(after);
  // The sum of -inf and of numbers that overflow is NaN.
  const bool becomes_infinite = before != before && after == after;
  return is_nan_or_infinite(before) && (becomes_infinite || !is_nan_or_infinite(after));
}

static void write_float16(const float* values, int64_t count, float factor, uint16_t* output) {
  for (int64_t d = 0; d < count; ++d) output[d] = narrow_to_float16(values[d] * factor);
}

static void write_bfloat16(const float* values, int64_t count, float factor, uint16_t* output) {
  for (int64_t d = 0; d < count; ++d) output[d] = narrow_to_bfloat16(values[d] * factor);
}

// Writes the elements of an output row whose unscaled sums left the range of float32.
static void replace_output(const Problem& problem, int64_t first, const float* values,
                           float inverse) {
  for (int64_t d = 0; d < problem.value_dim; ++d) {
    const float before = read_element(problem.output, problem.dtype, first + d);
    const float result = values[d] * inverse * (1.0f / problem.value_scale);
    if (!must_replace(problem, before, values[d])) continue;
    if (problem.dtype == Dtype::float32)
      static_cast<float*>(problem.output)[first + d] = result;
    else
      static_cast<uint16_t*>(problem.output)[first + d] =
          problem.dtype == Dtype::float16 ? narrow_to_float16(result) : narrow_to_bfloat16(result);
  }
}

static void write_output(const Problem& problem, int64_t item, int64_t head, int64_t token,
                         const float* values, float inverse) {
  const int64_t* stride = problem.output_stride;
  const int64_t first = item * stride[0] + head * stride[1] + token * stride[2];
  if (problem.rescales_values()) return replace_output(problem, first, values, inverse);
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

// Replaces both sums of a row of a partial that overflowed by those relative to a larger running
// max, so that they fit. Where float32 cannot tell that running max from the row's own, the row
// stays as it is.
static void raise_running_max(const Problem& problem, int64_t row, const SoftmaxState& softmax,
                              const float* values) {
  const float scale = problem.value_scale;
  const float running_max = softmax.running_max * problem.score_unit();
  const float raised_max = running_max - __builtin_log2f(scale) * kLn2;
  const float factor = __builtin_exp2f((running_max - raised_max) * kLog2e);
  if (!(factor > scale * scale && factor < 1.0f)) return;
  problem.running_max[row] = raised_max;
  problem.running_sum[row] = softmax.running_sum * factor;
  float* const output = problem.values + row * problem.value_dim;
  for (int64_t d = 0; d < problem.value_dim; ++d) output[d] = values[d] * (factor / scale);
}

// Writes what left the range of float32 in a row of the unscaled partial.
static void replace_partial(const Problem& problem, int64_t row, const SoftmaxState& softmax,
                            const float* values) {
  float* const output = problem.values + row * problem.value_dim;
  bool replaces = false;
  for (int64_t d = 0; d < problem.value_dim; ++d) {
    if (!must_replace(problem, output[d], values[d])) continue;
    replaces = true;
    if (problem.value_scale > 1.0f) output[d] = values[d] * (1.0f / problem.value_scale);
  }
  if (replaces && problem.value_scale < 1.0f) raise_running_max(problem, row, softmax, values);
}

static void write_partial(const Problem& problem, int64_t row, const SoftmaxState& softmax,
                          const float* values) {
  if (problem.rescales_values()) return replace_partial(problem, row, softmax, values);
  problem.running_max[row] = softmax.running_max * problem.score_unit();
  problem.running_sum[row] = softmax.running_sum;
  float* output = problem.values + row * problem.value_dim;
  __builtin_memcpy(output, values, std::size_t(problem.value_dim) * sizeof(float));
}

// Writes the LSE of a row in two parts: a weight that is computed again from it is then as exact as
// the first time.
static void write_query_lse(const Problem& problem, int64_t head, int64_t index,
                            const SoftmaxState& softmax) {
  problem.query_lse_rest[index] = 0.0f;
  problem.query_lse[index] = -kInfinity;
  if (softmax.running_sum == 0.0f) return;  // a row without keys
  double largest = double(softmax.running_max) * double(problem.score_unit());
  double sum = double(softmax.running_sum);
  if (problem.sinks) {
    const double sink = double(problem.sinks[head]);
    if (sink > largest) {
      sum = sum * __builtin_exp(largest - sink) + 1.0;
      largest = sink;
    } else {
      sum += __builtin_exp(sink - largest);
    }
  }
  const double lse = largest + __builtin_log(sum);
  problem.query_lse[index] = float(lse);
  if (float(lse) - float(lse) == 0.0f)
    problem.query_lse_rest[index] = float(lse - double(float(lse)));
}

static unsigned write_results(const Problem& problem, const Task& task, const State& state,
                              const ScoreBuffer* buffers, int64_t buffer_count) {
  const Statistics& statistics = problem.statistics;
  const int64_t group = problem.group();
  const int64_t width = problem.value_width();
  unsigned range = kInRange;
  for (int64_t row = 0; row < task.rows(); ++row) {
    const int64_t token = task.token(row, group);
    const int64_t head = task.query_head(row, group);
    const SoftmaxState& softmax = state.softmax[row];
    float* const values = state.values + row * width;
    const Denominator denominator = compute_denominator(problem, head, softmax);
    if (denominator.is_empty)
      // What the row does not see may have left NaN.
      __builtin_memset(values, 0, std::size_t(width) * sizeof(float));
    else if (denominator.inverse == denominator.inverse)
      range |= find_value_range(values, width);
    if (problem.running_max)
      write_partial(problem, (task.item * problem.query_heads + head) * problem.queries + token,
                    softmax, values);
    else
      write_output(problem, task.item, head, token, values, denominator.inverse);
    state.inverse[row] = denominator.inverse;
    if (problem.query_lse)
      write_query_lse(problem, head,
                      (task.item * problem.query_heads + head) * problem.queries + token, softmax);
    const int64_t index = statistics_index(problem, task, row);
    if (index >= 0)
      write_row_statistics(problem, index, denominator, softmax,
                           state.top_scores + row * statistics.top_k,
                           state.top_keys + row * statistics.top_k);
  }
  if (problem.wants_statistics && statistics.segment_mass)
    write_segment_mass(problem, task, state, buffers, buffer_count);
  return range;
}

}  // namespace keywise::KEYWISE_TARGET
