// THE kernel, written once. A target file defines a vector vocabulary in its own namespace and includes this file
// there; nothing may leave that namespace, because every target is compiled with other flags.
//
// Accumulators are float32. Tails: keys are padded with zeros to whole panels and hidden by score -inf; value columns
// are padded with zeros to value_width; rows have a tile of their own height. Vocabulary: see targets/portable.cpp.

#include "exp.inl.h"
#include "pack.inl.h"
#include "partial.h"
#include "visible.inl.h"

static_assert(kTileRows <= kMaximumTileRows && kRowsInPlace <= kTileRows && kLanes <= 16);
static_assert(kPad % kLanes == 0 && kBlockKeys % kPanelKeys == 0);

static constexpr float kLog2e = 1.44269504088896340736f;
static constexpr float kLn2 = 0.693147180559945309417f;
static constexpr float kInfinity = __builtin_inff();

// Values read in place come in strips of this many bytes.
static constexpr int64_t kValueStripBytes = 8192;

static inline bool uses_pairs(const Problem& problem) { return kDotsPairs && problem.dtype == Dtype::bfloat16; }

// scores[R][kBlockKeys] = queries[depth][R] . panel[depth][kPanelKeys]; all accumulators stay in registers.
template <int R, bool kPairs>
static void score_tile(const float* queries, const float* panel, int64_t depth, float* scores) {
  // Long sums are made of short ones: rounding errors grow with the length of a chain.
  constexpr int64_t kChain = kPairs ? 64 : 128;
  Vec left[R], right[R];
  for (int64_t done = 0; done < depth; done += kChain) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) left[r] = right[r] = zero();
    const int64_t chain = depth - done < kChain ? depth - done : kChain;
    for (int64_t d = 0; d < chain; ++d, queries += R, panel += kPanelKeys) {
      const Vec key_left = load(panel), key_right = load(panel + kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec query = broadcast(queries[r]);
        left[r] = kPairs ? dot_pairs(query, key_left, left[r]) : mul_add(query, key_left, left[r]);
        right[r] = kPairs ? dot_pairs(query, key_right, right[r]) : mul_add(query, key_right, right[r]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* here = scores + r * kBlockKeys;
      store(here, done ? add(load(here), left[r]) : left[r]);
      store(here + kLanes, done ? add(load(here + kLanes), right[r]) : right[r]);
    }
  }
}

template <int R, bool kPairs>
static void score_rows(int64_t rows, const float* queries, const float* panel, int64_t depth, float* scores) {
  if constexpr (R > 1) {
    if (rows < R) return score_rows<R - 1, kPairs>(rows, queries, panel, depth, scores);
  }
  score_tile<R, kPairs>(queries, panel, depth, scores);
}

template <Dtype kDtype>
static inline Vec load_as(const char* row, int64_t index) {
  if constexpr (kDtype == Dtype::float32) return load(reinterpret_cast<const float*>(row) + index);
  const uint16_t* source = reinterpret_cast<const uint16_t*>(row) + index;
  return kDtype == Dtype::bfloat16 ? load_bfloat16(source) : load_float16(source);
}

// Scores of R rows, kLanes keys at a time, straight from where the user has them: packing a block of keys pays only
// when many rows use it. A key is loaded once for all rows, in the order it lies in memory.
template <int R, Dtype kDtype, bool kPairs>
static void score_in_place(const Problem& problem, const char* key, int64_t stride_bytes, const float* queries,
                           int64_t count, float* scores) {
  const int64_t step = kPairs ? 2 : 1, depth = key_depth(problem, kPairs), padded = round_up(depth, kLanes);
  const int64_t whole = problem.head_dim / step / kLanes * kLanes;
  for (int64_t j = 0; j < count; j += kLanes) {
    Vec sums[R][kLanes];
    for (int i = 0; i < kLanes; ++i, key += stride_bytes) {
      Vec sum[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r] = zero();
      const auto add_products = [&](Vec elements, int64_t d) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec query = load(queries + r * padded + d);
          sum[r] = kPairs ? dot_pairs(query, elements, sum[r]) : mul_add(query, elements, sum[r]);
        }
      };
      if (j + i < count) {
        for (int64_t d = 0; d < whole; d += kLanes)
          add_products(kPairs ? load(reinterpret_cast<const float*>(key) + d) : load_as<kDtype>(key, d), d);
        if (whole < depth) {
          const int64_t left = problem.head_dim - step * whole;
          add_products(kPairs ? load_pairs(key, step * whole, left) : load_elements(key, kDtype, whole, left), whole);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sums[r][i] = sum[r];
    }
    for (int r = 0; r < R; ++r) store(scores + r * kBlockKeys + j, sum_each(sums[r]));
  }
}

template <int R, Dtype kDtype, bool kPairs>
static void score_rows_in_place(int64_t rows, const Problem& problem, const char* key, int64_t stride_bytes,
                                const float* queries, int64_t count, float* scores) {
  if constexpr (R > 1) {
    if (rows < R)
      return score_rows_in_place<R - 1, kDtype, kPairs>(rows, problem, key, stride_bytes, queries, count, scores);
  }
  score_in_place<R, kDtype, kPairs>(problem, key, stride_bytes, queries, count, scores);
}

static void score_rows_in_place(int64_t rows, const Problem& problem, const Task& task, bool pairs,
                                const float* queries, int64_t first_key, int64_t count, float* scores) {
  const auto score = pairs                                ? score_rows_in_place<kRowsInPlace, Dtype::bfloat16, kDotsPairs>
                     : problem.dtype == Dtype::float32  ? score_rows_in_place<kRowsInPlace, Dtype::float32, false>
                     : problem.dtype == Dtype::bfloat16 ? score_rows_in_place<kRowsInPlace, Dtype::bfloat16, false>
                                                        : score_rows_in_place<kRowsInPlace, Dtype::float16, false>;
  score(rows, problem, key_at(problem, task, first_key), task.piece->key.stride[2] * bytes_of(problem.dtype), queries,
        count, scores);
}

// outputs[R][C kLanes] = outputs x rescale[R] + weights[R][keys] . values[keys][C kLanes], from column `first` on; a
// null rescale is 1. Of pairs of bfloat16, weights and values, one lane counts as one key.
template <int R, int C, Dtype kDtype, bool kPairs>
static void value_tile(const float* weights, const Values& values, int64_t first, int64_t keys, int64_t width,
                       const float* rescale, float* outputs) {
  Vec sum[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const Vec before = load(outputs + r * width + c * kLanes);
      sum[r][c] = rescale ? mul(broadcast(rescale[r]), before) : before;
    }
  const char* row = values.first;
  for (int64_t key = 0; key < keys; ++key, row += values.stride_bytes) {
    Vec value[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) value[c] = load_as<kDtype>(row, first + c * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec weight = broadcast(weights[r * (kPairs ? kBlockKeys / 2 : kBlockKeys) + key]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c)
        sum[r][c] = kPairs ? dot_pairs(weight, value[c], sum[r][c]) : mul_add(weight, value[c], sum[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) store(outputs + r * width + c * kLanes, sum[r][c]);
}

template <int R, int C, Dtype kDtype, bool kPairs>
static void value_rows(int64_t rows, int64_t columns, const float* weights, const Values& values, int64_t first,
                       int64_t keys, int64_t width, const float* rescale, float* outputs) {
  if constexpr (R > 1) {
    if (rows < R)
      return value_rows<R - 1, C, kDtype, kPairs>(rows, columns, weights, values, first, keys, width, rescale, outputs);
  }
  if constexpr (C > 1) {
    if (columns < C)
      return value_rows<R, C - 1, kDtype, kPairs>(rows, columns, weights, values, first, keys, width, rescale, outputs);
  }
  value_tile<R, C, kDtype, kPairs>(weights, values, first, keys, width, rescale, outputs);
}

template <Dtype kDtype, bool kPairs>
static void add_values(int64_t rows, const float* weights, const Values& values, int64_t keys, int64_t width,
                       const float* rescale, float* outputs) {
  // One tile of rows takes values in strips that stay in the first-level cache over its tiles of columns.
  constexpr int64_t kStride = kPairs ? kBlockKeys / 2 : kBlockKeys;
  const int64_t strip = rows <= kValueRows ? clamp(kValueStripBytes / values.stride_bytes, 8, keys) : keys;
  for (int64_t key = 0; key < keys; key += strip) {
    const Values here{values.first + key * values.stride_bytes, values.stride_bytes, values.dtype};
    const int64_t count = keys - key < strip ? keys - key : strip;
    for (int64_t r = 0; r < rows; r += kValueRows)
      for (int64_t d = 0; d < width; d += kValueVectors * kLanes)
        value_rows<kValueRows, kValueVectors, kDtype, kPairs>(rows - r, (width - d) / kLanes,
                                                              weights + r * kStride + key, here, d, count, width,
                                                              key ? nullptr : rescale + r, outputs + r * width + d);
  }
}

static void add_values(int64_t rows, const float* weights, const Values& values, int64_t keys, int64_t width,
                       const float* rescale, float* outputs) {
  const auto add = values.dtype == Dtype::float32    ? add_values<Dtype::float32, false>
                   : values.dtype == Dtype::bfloat16 ? add_values<Dtype::bfloat16, false>
                                                     : add_values<Dtype::float16, false>;
  add(rows, weights, values, keys, width, rescale, outputs);
}

static bool all_finite(const Values& values, int64_t keys, int64_t value_dim) {
  Vec poison = zero();  // 0 x NaN and 0 x inf are NaN
  const char* row = values.first;
  for (int64_t key = 0; key < keys; ++key, row += values.stride_bytes)
    for (int64_t d = 0; d < value_dim; d += kLanes)
      poison = mul_add(load_elements(row, values.dtype, d, value_dim - d), zero(), poison);
  return sum(poison) == 0.0f;
}

// As add_values, but a weight of 0 never meets its value: what a mask hides may be NaN or infinite.
static void add_values_around_poison(int64_t rows, const float* weights, const Values& values, int64_t keys,
                                     int64_t value_dim, int64_t width, const float* rescale, float* outputs) {
  for (int64_t r = 0; r < rows; ++r, weights += kBlockKeys, outputs += width) {
    for (int64_t d = 0; d < value_dim; ++d) outputs[d] *= rescale[r];
    for (int64_t key = 0; key < keys; ++key) {
      if (weights[key] == 0.0f) continue;
      const char* row = values.first + key * values.stride_bytes;
      for (int64_t d = 0; d < value_dim; ++d) outputs[d] += weights[key] * element(row, values.dtype, d);
    }
  }
}

// Scale, softcap and bias; `line` is scratch for a block of bias.
static void transform_row(const Problem& problem, int64_t item, int64_t head, int64_t token, int64_t block,
                          int64_t begin, int64_t end, float* line, float* scores) {
  const Vec scale = broadcast(problem.softcap > 0.0f ? problem.scale / problem.softcap : problem.scale);
  const Vec cap = broadcast(problem.softcap);
  const Bias& bias = problem.bias;
  if (bias.data) {
    const int64_t known = problem.keys - block < end ? problem.keys - block : end;
    const int64_t first = item * bias.stride[0] + head * bias.stride[1] + token * bias.stride[2];
    for (int64_t j = begin; j < known; ++j)
      line[j] = element(bias.data, bias.dtype, first + (block + j) * bias.stride[3]);
    for (int64_t j = known; j < end; ++j) line[j] = 0.0f;
  }
  for (int64_t j = begin; j < end; j += kLanes) {
    Vec score = mul(load(scores + j), scale);
    if (problem.softcap > 0.0f) score = mul(cap, hyperbolic_tangent(score));
    if (bias.data) score = add(score, load(line + j));
    store(scores + j, score);
  }
}

struct Largest {
  Vec of_lanes;
  float of_all;
};

static Largest largest_of(const float* scores, int64_t begin, int64_t end) {
  Vec largest = broadcast(-kInfinity);
  for (int64_t j = begin; j < end; j += kLanes) largest = maximum(load(scores + j), largest);
  return {largest, reduce_maximum(largest)};
}

// A score that at least `top` keys reach, as far as the largest of every lane tells; -inf where they do not tell.
static float reached_by(int64_t top, Vec of_lanes) {
  if (top > kLanes) return -kInfinity;
  float lanes[kLanes];
  store(lanes, of_lanes);
  int width = kLanes;
  for (; width >= 2 * top; width /= 2)
    for (int i = 0; i < width / 2; ++i) lanes[i] = lanes[i] > lanes[i + width / 2] ? lanes[i] : lanes[i + width / 2];
  float least = lanes[0];
  for (int i = 1; i < width; ++i) least = lanes[i] < least ? lanes[i] : least;
  return least;
}

// Brings the row's list of heaviest keys up to date with a block of scores.
static void keep_top(const Workspace& workspace, const float* scores, int64_t begin, int64_t end, int64_t first_key,
                     const Largest& largest, int64_t top, float* top_scores, int32_t* top_keys) {
  float* candidates = workspace.candidates;
  int32_t* keys = workspace.candidate_keys;
  int64_t count = 0;
  const auto begin_with_kept = [&] {
    for (count = 0; count < top && top_keys[count] >= 0; ++count) {
      candidates[count] = top_scores[count];
      keys[count] = top_keys[count];
    }
  };
  begin_with_kept();
  float bar = top_scores[top - 1];
  if (bar == -kInfinity) {
    const float reached = reached_by(top, largest.of_lanes);
    bar = reached > -kInfinity ? __builtin_nextafterf(reached, -kInfinity) : bar;
  }
  for (int64_t j = begin; j < end; j += kLanes) {
    for (unsigned above = lanes_above(load(scores + j), broadcast(bar)); above; above &= above - 1) {
      const int64_t i = j + __builtin_ctz(above);
      candidates[count] = scores[i];
      keys[count++] = int32_t(first_key + i);
    }
    if (count + kLanes <= candidate_room(top)) continue;
    select_largest(candidates, keys, count, top, top_scores, top_keys);
    begin_with_kept();
    bar = top_scores[top - 1];
  }
  select_largest(candidates, keys, count, top, top_scores, top_keys);
}

template <bool kMoments>
static inline Vec weigh(Vec factor, Vec peak, float* scores, Vec& total, Vec& moment) {
  const Vec x = mul(sub(load(scores), peak), factor);
  const Vec weight = exp2_nonpositive(x);
  // Weights below 2^-126 are 0, so the clamp changes nothing but keeps -inf x 0 out.
  if (kMoments) moment = mul_add(weight, maximum(broadcast(-200.0f), x), moment);
  total = add(total, weight);
  store(scores, weight);
  return weight;
}

// Scores become weights exp(score - peak) in place, and in `narrow` as pairs of bfloat16; peak, total and moment, which
// take the weights as they are, move on. Returns the factor for what the row gathered before. `unit` is a stored score
// in base 2; begin and end are whole panels.
template <bool kMoments, bool kNarrow>
static float weigh_row(float unit, float largest, int64_t begin, int64_t end, float* scores, float* narrow,
                       const State& state, int64_t row) {
  const float before = state.peak[row], peak = largest > before ? largest : before;
  // A row that has seen no key yet keeps total 0: its weights come out as 0 against any finite anchor.
  const float anchor = peak == -kInfinity ? 0.0f : peak;
  float rescale = 1.0f;
  if (peak > before) {
    const float shift = (before - peak) * unit;
    rescale = __builtin_exp2f(shift);
    if (kMoments && before != -kInfinity) state.moment[row] = rescale * (state.moment[row] + shift * state.total[row]);
    state.total[row] *= rescale;
    state.peak[row] = peak;
  }
  const Vec factor = broadcast(unit), top = broadcast(anchor);
  Vec total = zero(), moment = zero();
  for (int64_t j = begin; j < end; j += kPanelKeys) {
    const Vec left = weigh<kMoments>(factor, top, scores + j, total, moment);
    const Vec right = weigh<kMoments>(factor, top, scores + j + kLanes, total, moment);
    if (kNarrow) store(narrow + j / 2, to_pairs(left, right));
  }
  if (kMoments) state.moment[row] += sum(moment);
  state.total[row] += sum(total);
  return rescale;
}

static void clear_state(const Problem& problem, const Task& task, const State& state) {
  const int64_t rows = task.rows(), top = problem.top();
  for (int64_t row = 0; row < rows; ++row) {
    state.peak[row] = -kInfinity;
    state.total[row] = state.moment[row] = 0.0f;
  }
  __builtin_memset(state.values, 0, std::size_t(rows * problem.value_width()) * sizeof(float));
  for (int64_t i = 0; i < rows * top; ++i) {
    state.top_scores[i] = -kInfinity;
    state.top_keys[i] = -1;
  }
}

static void compute(const Problem& problem, const Task& task, const Workspace& workspace, const State& state,
                    const Strip* strip) {
  const bool pairs = uses_pairs(problem), transformed = problem.transforms();
  const bool by_key = problem.visibility.documents || problem.visibility.allowed;
  // Few rows use each value a few times only: copying them first would cost more than converting them as they come.
  const bool keys_in_place = task.rows() <= kRowsInPlace;
  const bool values_in_place = task.rows() <= kTileRows && problem.value_dim == problem.value_width();
  const bool value_pairs = pairs && !values_in_place;
  const auto weigh = problem.reads ? (value_pairs ? weigh_row<true, kDotsPairs> : weigh_row<true, false>)
                                   : (value_pairs ? weigh_row<false, kDotsPairs> : weigh_row<false, false>);
  const float unit = problem.score_unit_base2();
  const int64_t depth = key_depth(problem, pairs), width = problem.value_width(), group = problem.group();
  const int64_t rows = task.rows(), top = problem.top();
  Span* spans = reinterpret_cast<Span*>(workspace.spans);
  for (int64_t row = 0; row < rows; ++row) spans[row] = span_of(problem, task, (task.first_row + row) / group);
  if (!task.continues) {
    clear_state(problem, task, state);
    pack_queries(problem, task, pairs, keys_in_place, workspace.queries);
  }

  int64_t block_number = 0;
  for (int64_t block = task.first_key(); block < task.last_key(); block += kBlockKeys, ++block_number) {
    const int64_t block_end = task.last_key() - block < kBlockKeys ? task.last_key() - block : kBlockKeys;
    int32_t* strip_begin = strip ? strip->begin + block_number * rows : nullptr;
    int32_t* strip_end = strip ? strip->end + block_number * rows : nullptr;
    for (int64_t row = 0; strip && row < rows; ++row) strip_begin[row] = strip_end[row] = 0;
    int64_t seen = block_end, seen_end = 0;
    for (int64_t row = 0; row < rows; ++row) widen_to(spans[row], block, block_end, seen, seen_end);
    if (seen >= seen_end) continue;

    const int64_t packed = seen / kPanelKeys * kPanelKeys;
    if (!keys_in_place) pack_keys(problem, task, block + packed, block + seen_end, pairs, workspace.keys);
    const Values values{value_at(problem, task, block + seen), task.piece->value.stride[2] * bytes_of(problem.dtype),
                        problem.dtype};
    if (value_pairs)
      pack_value_pairs(values, packed, seen, seen_end, problem.value_dim, width, workspace.values);
    else if (!values_in_place)
      pack_values(values, seen_end - seen, problem.value_dim, width, workspace.values);
    // Looked up only when a row hides something: a hidden value may be NaN, and 0 x NaN is not 0.
    enum { unknown, no, yes } poisoned = unknown;

    const float* queries = workspace.queries;
    for (int64_t first = 0; first < rows; first += kTileRows, queries += depth * kTileRows) {
      const int64_t height = rows - first < kTileRows ? rows - first : kTileRows;
      int64_t begin = block_end, end = 0;
      for (int64_t r = 0; r < height; ++r) widen_to(spans[first + r], block, block_end, begin, end);
      if (begin >= end) continue;
      const int64_t panel_begin = begin / kPanelKeys * kPanelKeys, panel_end = round_up(end, kPanelKeys);
      float* scores = strip ? strip->weights + (block_number * rows + first) * kBlockKeys : workspace.scores;
      if (keys_in_place) {
        score_rows_in_place(height, problem, task, pairs, queries, block + panel_begin, end - panel_begin,
                            scores + panel_begin);
        for (int64_t j = round_up(end, kLanes); j < panel_end; j += kLanes)
          for (int64_t r = 0; r < height; ++r) store(scores + r * kBlockKeys + j, zero());
      }
      for (int64_t j = panel_begin; !keys_in_place && j < panel_end; j += kPanelKeys) {
        const float* panel = workspace.keys + (j - packed) * depth;
        if (pairs)
          score_rows<kTileRows, kDotsPairs>(height, queries, panel, depth, scores + j);
        else
          score_rows<kTileRows, false>(height, queries, panel, depth, scores + j);
      }

      // A bias of -inf hides as well.
      bool hides = by_key || problem.bias.data;
      for (int64_t r = 0; r < height; ++r) {
        const int64_t row = first + r, token = (task.first_row + row) / group;
        const int64_t head = task.key_head * group + (task.first_row + row) % group;
        float* line = scores + r * kBlockKeys;
        if (transformed)
          transform_row(problem, task.item, head, token, block, panel_begin, panel_end, workspace.line, line);
        if (!covers(spans[row], block + panel_begin, block + panel_end)) {
          hides = true;
          hide_outside(spans[row], block, panel_begin, panel_end, line);
        }
        if (by_key) hide_by_key(problem, task.item, head, token, block, panel_begin, end, line);
        const Largest largest = largest_of(line, panel_begin, panel_end);
        if (top && largest.of_all > state.top_scores[row * top + top - 1])
          keep_top(workspace, line, panel_begin, panel_end, block, largest, top, state.top_scores + row * top,
                   state.top_keys + row * top);
        workspace.rescale[r] = weigh(unit, largest.of_all, panel_begin, panel_end, line,
                                     workspace.narrow + r * kBlockKeys / 2, state, row);
        if (strip) {
          strip->peaks[block_number * rows + row] = state.peak[row];
          strip_begin[row] = int32_t(panel_begin);
          strip_end[row] = int32_t(end);
        }
      }
      if (hides && poisoned == unknown)
        poisoned = all_finite(values, seen_end - seen, problem.value_dim) ? no : yes;
      const float* rescale = workspace.rescale;
      float* outputs = state.values + first * width;
      const Values here{values.first + (begin - seen) * values.stride_bytes, values.stride_bytes, values.dtype};
      const int64_t row_bytes = width * int64_t(sizeof(float));
      const char* packed_values = reinterpret_cast<const char*>(workspace.values);
      if (hides && poisoned == yes)
        add_values_around_poison(height, scores + begin, here, end - begin, problem.value_dim, width, rescale, outputs);
      else if (values_in_place)
        add_values(height, scores + begin, here, end - begin, width, rescale, outputs);
      else if (value_pairs)
        add_values<Dtype::float32, kDotsPairs>(height, workspace.narrow + panel_begin / 2,
                                               {packed_values + (panel_begin - packed) / 2 * row_bytes, row_bytes,
                                                Dtype::float32}, (end - panel_begin + 1) / 2, width, rescale, outputs);
      else
        add_values<Dtype::float32, false>(height, scores + begin, {packed_values + (begin - seen) * row_bytes, row_bytes,
                                                                   Dtype::float32}, end - begin, width, rescale, outputs);
    }
  }
}

#include "finish.inl.h"
