// The state of an online softmax over some keys, for one query row.
#pragma once

#include "problem.h"

namespace keywise {

constexpr float kInfinity = __builtin_inff();

// Empty: running_max is -inf and the sums are 0.
struct SoftmaxState {
  float running_max = -kInfinity;
  // Sum of exp(score - running_max).
  float running_sum = 0.0f;
  // Sum of exp(score - running_max) x (score - running_max) in base 2, for the entropy.
  float score_moment = 0.0f;
};

// Factors for the value sums of both sides of a merge.
struct MergeFactors {
  float left;
  float right;
};

// Merges `right` into `left`. `unit_base2` is Problem::score_unit_base2.
KEYWISE_INLINE MergeFactors merge(SoftmaxState& left, const SoftmaxState& right, float unit_base2) {
  const float running_max =
      left.running_max > right.running_max ? left.running_max : right.running_max;
  // The sums of an empty side are 0, so its shift does not matter; (-inf) - (-inf) would be NaN.
  const float left_shift =
      left.running_max == -kInfinity ? 0.0f : (left.running_max - running_max) * unit_base2;
  const float right_shift =
      right.running_max == -kInfinity ? 0.0f : (right.running_max - running_max) * unit_base2;
  MergeFactors factors{1.0f, 1.0f};
  if (running_max != -kInfinity) {
    factors.left = __builtin_exp2f(left_shift);
    factors.right = __builtin_exp2f(right_shift);
  }
  left.score_moment = factors.left * (left.score_moment + left_shift * left.running_sum) +
                      factors.right * (right.score_moment + right_shift * right.running_sum);
  left.running_sum = factors.left * left.running_sum + factors.right * right.running_sum;
  left.running_max = running_max;
  return factors;
}

}  // namespace keywise
