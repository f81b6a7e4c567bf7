// Merging partials: two states over different keys of the same rows become one.
//
// Inputs: two states, of which `from` has the later keys. Output: `into`. Arithmetic: float32. A
// row without keys is the identity. Tail rule: columns up to value_width, padding included.
#pragma once

#include <cstdint>

#include "simd.h"
#include "softmax_state.h"
#include "top_k.h"

namespace keywise::KEYWISE_TARGET {

static void merge_states(const Problem& problem, const Workspace& workspace, int64_t rows,
                         const State& into, const State& from) {
  const float unit_base2 = problem.score_unit_base2();
  const int64_t width = problem.value_width();
  for (int64_t row = 0; row < rows; ++row) {
    const MergeFactors factors = merge(into.softmax[row], from.softmax[row], unit_base2);
    float* values = into.values + row * width;
    const float* other_values = from.values + row * width;
    for (int64_t i = 0; i < width; ++i)
      values[i] = factors.left * values[i] + factors.right * other_values[i];
    if (problem.top_k()) merge_top_k(workspace, problem.top_k(), into, from, row);
  }
}

}  // namespace keywise::KEYWISE_TARGET
