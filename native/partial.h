// The algebra: two partials over different keys of the same rows become one; peak -inf, total 0 is the identity.
// Included by attend.inl.h only.

// Gives the `top` largest of `count` candidates, which stand in key order, largest first, ties to the lower key. Every
// candidate's place is counted, because a sort would wait for branches that cannot be predicted; all are put in order
// in the second half of their room, for the same reason.
static void select_largest(float* candidates, int32_t* candidate_keys, int64_t count, int64_t top, float* scores,
                           int32_t* keys) {
  float* ordered = candidates + candidate_capacity(top);
  int32_t* ordered_keys = candidate_keys + candidate_capacity(top);
  store(candidates + count, broadcast(-__builtin_inff()));
  for (int64_t i = 0; i < count; ++i) {
    const Vec score = broadcast(candidates[i]);
    int64_t place = 0;
    for (int64_t j = 0; j < count; j += kLanes) {
      const Vec others = load(candidates + j);
      // Of the candidates before this one those that are as large count too.
      const unsigned before = i <= j ? 0u : i - j >= kLanes ? (1u << kLanes) - 1u : (1u << (i - j)) - 1u;
      const unsigned ahead = (greater_mask(others, score) & ~before) | (~greater_mask(score, others) & before);
      place += __builtin_popcount(ahead);
    }
    ordered[place] = candidates[i];
    ordered_keys[place] = candidate_keys[i];
  }
  const std::size_t found = std::size_t(count < top ? count : top);
  __builtin_memcpy(scores, ordered, found * sizeof(float));
  __builtin_memcpy(keys, ordered_keys, found * sizeof(int32_t));
}

static void merge_top(const Workspace& workspace, int64_t top, const State& into, const State& from, int64_t row) {
  int64_t count = 0;
  const auto take = [&](const State& state) {
    for (int64_t i = row * top; i < (row + 1) * top && state.top_keys[i] >= 0; ++i) {
      workspace.candidates[count] = state.top_scores[i];
      workspace.candidate_keys[count++] = state.top_keys[i];
    }
  };
  take(into);
  take(from);
  select_largest(workspace.candidates, workspace.candidate_keys, count, top, into.top_scores + row * top,
                 into.top_keys + row * top);
}

static void merge(const Problem& problem, const Workspace& workspace, int64_t rows, const State& into,
                  const State& from) {
  const float unit = problem.score_unit_base2();
  const int64_t width = problem.value_width();
  for (int64_t row = 0; row < rows; ++row) {
    const float left = into.softmax[row].running_max, right = from.softmax[row].running_max;
    const float running_max = left > right ? left : right;
    const bool none = running_max == -__builtin_inff();
    // A shift of -inf belongs to an empty side, whose total and moment are 0.
    const float left_shift = left == -__builtin_inff() ? 0.0f : (left - running_max) * unit;
    const float right_shift = right == -__builtin_inff() ? 0.0f : (right - running_max) * unit;
    const float keep = none ? 1.0f : __builtin_exp2f(left_shift), add = none ? 1.0f : __builtin_exp2f(right_shift);
    into.softmax[row].score_moment = keep * (into.softmax[row].score_moment + left_shift * into.softmax[row].running_sum) +
                       add * (from.softmax[row].score_moment + right_shift * from.softmax[row].running_sum);
    into.softmax[row].running_sum = keep * into.softmax[row].running_sum + add * from.softmax[row].running_sum;
    into.softmax[row].running_max = running_max;
    float* values = into.values + row * width;
    const float* others = from.values + row * width;
    for (int64_t i = 0; i < width; ++i) values[i] = keep * values[i] + add * others[i];
    if (problem.top()) merge_top(workspace, problem.top(), into, from, row);
  }
}
