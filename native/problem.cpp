#include "problem.h"

#include <algorithm>
#include <cmath>

#include "checked.h"
#include "float_mode.h"
#include "target.h"

namespace keywise {

// Every size, count and index of a call is at most one of these products, in whatever order its
// factors are multiplied.
void check_sizes(const Problem& problem) {
  constexpr int64_t kElementBytes = int64_t(sizeof(double));
  const int64_t row_numbers = max(max(problem.head_dim, problem.value_dim),
                                  max(problem.top_k(), problem.statistics.segments));
  // Two lists of top keys, and room to rank them.
  const int64_t row_width = checked_round_up(checked_multiply(row_numbers, 4), 4 * kPadFloats);
  const int64_t row_bytes = checked_multiply(row_width, kElementBytes);
  const int64_t heads = checked_multiply(problem.batch, problem.query_heads);
  const int64_t keys = checked_round_up(problem.keys, kBlockKeys);
  const int64_t queries = checked_round_up(problem.queries, kMaxTileRows);
  checked_multiply(max(heads, 1), queries, row_bytes);
  // Packed keys and values, key mass of every task, partials of every split.
  checked_multiply(keys, row_bytes);
  checked_multiply(max(heads, 1), keys, kMinTasks * kElementBytes);
}

Problem scale_queries(const Problem& given) {
  const DefaultFloatMode mode;
  Problem problem = given;
  const double size =
      std::fabs(double(given.scale)) / (given.softcap > 0.0f ? double(given.softcap) : 1.0);
  if (!(size < 1.0)) return problem;
  if (size == 0.0) {
    problem.query_scale = 0.0f;
    return problem;
  }
  constexpr int kMinExponent = -126;
  problem.query_scale = std::ldexp(1.0f, std::max(std::ilogb(size), kMinExponent));
  problem.scale /= problem.query_scale;
  return problem;
}

}  // namespace keywise
