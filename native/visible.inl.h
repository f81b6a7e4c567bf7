// Which keys a row sees, as at most two runs of keys plus what must be looked up key by key. Included by attend.inl.h and
// core.cpp.

// Keys [kept, kept_end) and [near, near_end) of a task, in this order; either may be empty.
struct Span {
  int64_t kept, kept_end, near, near_end;
};
static_assert(sizeof(Span) == sizeof(VisibleKeys));

static inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

static inline int64_t own_position(const Problem& problem, int64_t item, int64_t token) {
  return problem.visibility.lengths[item] - problem.queries + token;
}

// Whether all queries of an item have the same span.
static inline bool sees_alike(const Problem& problem) {
  const MaskRules& rule = problem.visibility;
  return !rule.causal && rule.left < 0 && rule.right < 0 && !rule.documents;
}

static inline Span span_of(const Problem& problem, const Task& task, int64_t token) {
  const MaskRules& rule = problem.visibility;
  const int64_t own = own_position(problem, task.item, token), start = rule.starts[task.item];
  int64_t end = rule.lengths[task.item];
  if (rule.causal && own + 1 < end) end = own + 1;
  // A query outside the sequence stands in no document.
  if (rule.documents && (own < 0 || own >= rule.positions)) end = start;
  int64_t near = start, near_end = end;
  if (rule.left >= 0 && own - rule.left > near) near = own - rule.left;
  if (rule.right >= 0 && own + rule.right + 1 < near_end) near_end = own + rule.right + 1;
  const int64_t kept_end = start + rule.keep_first < end ? start + rule.keep_first : end;
  const auto local = [&](int64_t position) { return clamp(position - rule.first_key, task.first_key, task.last_key); };
  return {local(start), local(kept_end), local(near), local(near_end)};
}

// What some of the rows of a task see: the ends of their spans move up with their tokens, but documents leave some out.
static inline Span span_of_rows(const Problem& problem, const Task& task) {
  const int64_t group = problem.group(), first = task.token(0, group), last = task.token(task.rows() - 1, group);
  Span some = span_of(problem, task, first);
  for (int64_t token = problem.visibility.documents ? first : last; token <= last; ++token) {
    const Span span = span_of(problem, task, token);
    if (span.kept_end > some.kept_end) some.kept_end = span.kept_end;
    if (span.near_end > some.near_end) some.near_end = span.near_end;
  }
  return some;
}

// Widens [begin, end), counted from the block, to the keys of the block that the row sees.
static inline void widen_to(const Span& span, int64_t block, int64_t block_end, int64_t& begin, int64_t& end) {
  const auto include = [&](int64_t first, int64_t last) {
    first = clamp(first - block, 0, block_end);
    last = clamp(last - block, 0, block_end);
    if (first >= last) return;
    if (first < begin) begin = first;
    if (last > end) end = last;
  };
  include(span.kept, span.kept_end);
  include(span.near, span.near_end);
}

// What some of the rows of a tile see, without leaving gaps, and what all of them see.
struct TileSpans {
  Span any, all;
};

static inline TileSpans spans_of_tile(const Span* rows, int64_t height) {
  const auto join = [](int64_t& begin, int64_t& end, int64_t first, int64_t last) {
    if (first >= last) return;
    const bool empty = begin >= end;
    begin = empty || first < begin ? first : begin;
    end = empty || last > end ? last : end;
  };
  const auto meet = [](int64_t& begin, int64_t& end, int64_t first, int64_t last) {
    begin = first > begin ? first : begin;
    end = last < end ? last : end;
  };
  TileSpans tile{rows[0], rows[0]};
  for (int64_t r = 1; r < height; ++r) {
    join(tile.any.kept, tile.any.kept_end, rows[r].kept, rows[r].kept_end);
    join(tile.any.near, tile.any.near_end, rows[r].near, rows[r].near_end);
    meet(tile.all.kept, tile.all.kept_end, rows[r].kept, rows[r].kept_end);
    meet(tile.all.near, tile.all.near_end, rows[r].near, rows[r].near_end);
  }
  return tile;
}

static inline bool covers(const Span& span, int64_t first, int64_t last) {
  return (span.near <= first && last <= span.near_end) || (span.kept <= first && last <= span.kept_end);
}

// Gives the scores [begin, end) of a block that lie outside the span the score -inf.
static inline void hide_outside(const Span& span, int64_t block, int64_t begin, int64_t end, float* scores) {
  int64_t shown = begin;
  const auto show = [&](int64_t first, int64_t last) {
    first = clamp(first - block, begin, end);
    last = clamp(last - block, begin, end);
    if (first >= last) return;
    for (; shown < first; ++shown) scores[shown] = -__builtin_inff();
    if (last > shown) shown = last;
  };
  show(span.kept, span.kept_end);
  show(span.near, span.near_end);
  for (; shown < end; ++shown) scores[shown] = -__builtin_inff();
}

// Documents and the boolean array; keys from `end` on do not exist and are hidden already.
static inline void hide_by_key(const Problem& problem, int64_t item, int64_t head, int64_t token, int64_t block,
                               int64_t begin, int64_t end, float* scores) {
  const MaskRules& rule = problem.visibility;
  if (rule.documents) {
    const int64_t own = own_position(problem, item, token);
    if (own >= 0 && own < rule.positions) {
      const int32_t* documents = rule.documents + item * rule.positions;
      const int32_t* of_keys = documents + rule.first_key + block;
      for (int64_t j = begin; j < end; ++j) scores[j] = of_keys[j] == documents[own] ? scores[j] : -__builtin_inff();
    }
  }
  if (rule.allowed) {
    const bool* row = rule.allowed + item * rule.allowed_stride[0] + head * rule.allowed_stride[1] +
                      token * rule.allowed_stride[2] + block * rule.allowed_stride[3];
    if (rule.allowed_stride[3] == 1) {
      for (int64_t j = begin; j < end; ++j) scores[j] = row[j] ? scores[j] : -__builtin_inff();
    } else {
      for (int64_t j = begin; j < end; ++j)
        scores[j] = row[j * rule.allowed_stride[3]] ? scores[j] : -__builtin_inff();
    }
  }
}
