// The algebra: two partials over different keys of the same rows become one; peak -inf, total 0 is the identity.
#pragma once

#include <cmath>

#include "core.h"

namespace keywise {

// Puts `from`, whose keys come after those of `into`, into `into`.
inline void merge(const Problem& problem, const State& into, const State& from, int64_t rows, int64_t top) {
  const float unit = problem.score_unit_base2();
  const int64_t width = problem.value_width();
  for (int64_t row = 0; row < rows; ++row) {
    const float left = into.peak[row], right = from.peak[row];
    const float peak = left > right ? left : right;
    const bool none = peak == -INFINITY;
    // A shift of -inf belongs to an empty side, whose total and moment are 0.
    const float left_shift = left == -INFINITY ? 0.0f : (left - peak) * unit;
    const float right_shift = right == -INFINITY ? 0.0f : (right - peak) * unit;
    const float keep = none ? 1.0f : std::exp2(left_shift), add = none ? 1.0f : std::exp2(right_shift);
    into.moment[row] = keep * (into.moment[row] + left_shift * into.total[row]) +
                       add * (from.moment[row] + right_shift * from.total[row]);
    into.total[row] = keep * into.total[row] + add * from.total[row];
    into.peak[row] = peak;
    float* values = into.values + row * width;
    const float* others = from.values + row * width;
    for (int64_t i = 0; i < width; ++i) values[i] = keep * values[i] + add * others[i];

    for (int64_t i = row * top; i < (row + 1) * top; ++i)
      if (from.top_keys[i] >= 0)
        keep_largest(from.top_scores[i], from.top_keys[i], top, into.top_scores + row * top, into.top_keys + row * top);
  }
}

}  // namespace keywise
