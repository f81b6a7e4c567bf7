// The denominator of a row: its running sum, and what a sink adds.
//
// Input: the complete softmax state of a row. Arithmetic: float32. A row without keys has no
// denominator, sink or not.
#pragma once

#include <cstdint>

#include "simd.h"
#include "softmax_state.h"

namespace keywise::KEYWISE_TARGET {

static constexpr float kLog2e = 1.44269504088896340736f;
static constexpr float kLn2 = 0.693147180559945309417f;

// Relative to the running maximum.
struct Denominator {
  bool is_empty = true;
  float inverse = 0.0f;
  float log_base2 = 0.0f;  // where the LSE is wanted
};

static inline Denominator compute_denominator(const Problem& problem, int64_t head,
                                              const SoftmaxState& softmax) {
  Denominator denominator;
  if (softmax.running_sum == 0.0f) return denominator;
  denominator.is_empty = false;
  const auto log_base2 = [&](float number) {
    return problem.wants_statistics ? __builtin_log2f(number) : 0.0f;
  };
  if (!problem.sinks) {
    denominator.inverse = 1.0f / softmax.running_sum;
    denominator.log_base2 = log_base2(softmax.running_sum);
    return denominator;
  }
  const float sink = (problem.sinks[head] - softmax.running_max * problem.score_unit()) * kLog2e;
  if (sink <= 0.0f) {
    const float sum = softmax.running_sum + __builtin_exp2f(sink);
    denominator.inverse = 1.0f / sum;
    denominator.log_base2 = log_base2(sum);
    return denominator;
  }
  // A sink above the running maximum is factored out: its exponential could overflow.
  const float shrink = __builtin_exp2f(-sink);
  const float rest = softmax.running_sum * shrink + 1.0f;
  denominator.inverse = shrink / rest;
  denominator.log_base2 = sink + log_base2(rest);
  return denominator;
}

// Returns the LSE of a row, -inf for one without keys.
static inline float compute_lse(const Problem& problem, const Denominator& denominator,
                                const SoftmaxState& softmax) {
  if (denominator.is_empty) return -kInfinity;
  return softmax.running_max * problem.score_unit() + denominator.log_base2 * kLn2;
}

}  // namespace keywise::KEYWISE_TARGET
