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

// One row's product with one key. Two sums hide the latency of the multiplications.
static inline Vec multiply_in_place(const Problem& problem, bool pairs, const float* query, const char* key,
                                    int64_t depth) {
  Vec even = zero(), odd = zero();
  const int64_t whole = (pairs ? problem.head_dim / 2 : problem.head_dim) / kLanes * kLanes;
  int64_t d = 0;
  if (pairs) {
    const float* source = reinterpret_cast<const float*>(key);
    for (; d + kLanes < whole; d += 2 * kLanes) {
      even = dot_pairs(load(query + d), load(source + d), even);
      odd = dot_pairs(load(query + d + kLanes), load(source + d + kLanes), odd);
    }
    for (; d < depth; d += kLanes) even = dot_pairs(load(query + d), load_pairs(key, 2 * d, problem.head_dim - 2 * d), even);
  } else {
    for (; d + kLanes < whole; d += 2 * kLanes) {
      even = mul_add(load(query + d), load_elements(key, problem.dtype, d, kLanes), even);
      odd = mul_add(load(query + d + kLanes), load_elements(key, problem.dtype, d + kLanes, kLanes), odd);
    }
    for (; d < depth; d += kLanes)
      even = mul_add(load(query + d), load_elements(key, problem.dtype, d, problem.head_dim - d), even);
  }
  return add(even, odd);
}

// Scores of one row, kLanes keys at a time, straight from where the user has them: packing a block of keys pays only
// when several rows use it.
static void score_in_place(const Problem& problem, const Task& task, bool pairs, const float* query, int64_t block,
                           int64_t begin, int64_t end, float* scores) {
  const int64_t depth = key_depth(problem, pairs);
  const int64_t stride_bytes = task.piece->key.stride[2] * bytes_of(problem.dtype);
  const char* key = key_at(problem, task, block + begin);
  for (int64_t j = begin; j < end; j += kLanes) {
    Vec sums[kLanes];
    for (int i = 0; i < kLanes; ++i, key += stride_bytes)
      sums[i] = j + i < end ? multiply_in_place(problem, pairs, query, key, depth) : zero();
    store(scores + j, sum_each(sums));
  }
}

// Rows of values, either packed as float32 or where the user has them.
struct Values {
  const char* first;
  int64_t stride_bytes;
  Dtype dtype;
};

template <Dtype kDtype>
static inline Vec load_as(const char* row, int64_t index) {
  if constexpr (kDtype == Dtype::float32) return load(reinterpret_cast<const float*>(row) + index);
  const uint16_t* source = reinterpret_cast<const uint16_t*>(row) + index;
  return kDtype == Dtype::bfloat16 ? load_bfloat16(source) : load_float16(source);
}

// outputs[R][C kLanes] = outputs x rescale[R] + weights[R][keys] . values[keys][C kLanes], from column `first` on
template <int R, int C, Dtype kDtype>
static void value_tile(const float* weights, const Values& values, int64_t first, int64_t keys, int64_t width,
                       const float* rescale, float* outputs) {
  Vec sum[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[r][c] = mul(broadcast(rescale[r]), load(outputs + r * width + c * kLanes));
  const char* row = values.first;
  for (int64_t key = 0; key < keys; ++key, row += values.stride_bytes) {
    Vec value[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) value[c] = load_as<kDtype>(row, first + c * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec weight = broadcast(weights[r * kBlockKeys + key]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) sum[r][c] = mul_add(weight, value[c], sum[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) store(outputs + r * width + c * kLanes, sum[r][c]);
}

template <int R, int C, Dtype kDtype>
static void value_rows(int64_t rows, int64_t columns, const float* weights, const Values& values, int64_t first,
                       int64_t keys, int64_t width, const float* rescale, float* outputs) {
  if constexpr (R > 1) {
    if (rows < R)
      return value_rows<R - 1, C, kDtype>(rows, columns, weights, values, first, keys, width, rescale, outputs);
  }
  if constexpr (C > 1) {
    if (columns < C)
      return value_rows<R, C - 1, kDtype>(rows, columns, weights, values, first, keys, width, rescale, outputs);
  }
  value_tile<R, C, kDtype>(weights, values, first, keys, width, rescale, outputs);
}

template <Dtype kDtype>
static void add_values(int64_t rows, const float* weights, const Values& values, int64_t keys, int64_t width,
                       const float* rescale, float* outputs) {
  for (int64_t r = 0; r < rows; r += kValueRows)
    for (int64_t d = 0; d < width; d += kValueVectors * kLanes)
      value_rows<kValueRows, kValueVectors, kDtype>(rows - r, (width - d) / kLanes, weights + r * kBlockKeys, values, d,
                                                    keys, width, rescale + r, outputs + r * width + d);
}

static void add_values(int64_t rows, const float* weights, const Values& values, int64_t keys, int64_t width,
                       const float* rescale, float* outputs) {
  const auto add = values.dtype == Dtype::float32    ? add_values<Dtype::float32>
                   : values.dtype == Dtype::bfloat16 ? add_values<Dtype::bfloat16>
                                                     : add_values<Dtype::float16>;
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

// Scores become weights exp(score - peak) in place; peak, total and moment move on. Returns the factor for what the
// row gathered before. `unit` is a stored score in base 2.
static float weigh_row(float unit, float largest, bool moments, int64_t begin, int64_t end, float* scores,
                       const State& state, int64_t row) {
  const float before = state.peak[row], peak = largest > before ? largest : before;
  // A row that has seen no key yet keeps total 0: its weights come out as 0 against any finite anchor.
  const float anchor = peak == -kInfinity ? 0.0f : peak;
  float rescale = 1.0f;
  if (peak > before) {
    const float shift = (before - peak) * unit;
    rescale = __builtin_exp2f(shift);
    if (moments && before != -kInfinity) state.moment[row] = rescale * (state.moment[row] + shift * state.total[row]);
    state.total[row] *= rescale;
    state.peak[row] = peak;
  }
  const Vec factor = broadcast(unit), top = broadcast(anchor);
  Vec total = zero(), moment = zero();
  if (moments) {
    // Weights below 2^-126 are 0, so the clamp changes nothing but keeps -inf x 0 out.
    const Vec lowest = broadcast(-200.0f);
    for (int64_t j = begin; j < end; j += kLanes) {
      const Vec x = mul(sub(load(scores + j), top), factor);
      const Vec weight = exp2_nonpositive(x);
      moment = mul_add(weight, maximum(lowest, x), moment);
      total = add(total, weight);
      store(scores + j, weight);
    }
    state.moment[row] += sum(moment);
  } else {
    for (int64_t j = begin; j < end; j += kLanes) {
      const Vec weight = exp2_nonpositive(mul(sub(load(scores + j), top), factor));
      total = add(total, weight);
      store(scores + j, weight);
    }
  }
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
  const bool moments = problem.reads;
  // Few rows use each value a few times only: copying them first would cost more than converting them as they come.
  const bool keys_in_place = task.rows() <= kRowsInPlace;
  const bool values_in_place = task.rows() <= kTileRows && problem.value_dim == problem.value_width();
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
    Values values{value_at(problem, task, block + seen), task.piece->value.stride[2] * bytes_of(problem.dtype),
                  problem.dtype};
    if (!values_in_place) {
      pack_values(problem, task, block + seen, block + seen_end, workspace.values);
      values = {reinterpret_cast<const char*>(workspace.values), width * int64_t(sizeof(float)), Dtype::float32};
    }
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
      for (int64_t r = 0; keys_in_place && r < height; ++r) {
        float* line = scores + r * kBlockKeys;
        score_in_place(problem, task, pairs, queries + r * round_up(depth, kLanes), block, panel_begin, end, line);
        for (int64_t j = round_up(end, kLanes); j < panel_end; j += kLanes) store(line + j, zero());
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
        workspace.rescale[r] = weigh_row(unit, largest.of_all, moments, panel_begin, panel_end, line, state, row);
        if (strip) {
          strip->peaks[block_number * rows + row] = state.peak[row];
          strip_begin[row] = int32_t(panel_begin);
          strip_end[row] = int32_t(end);
        }
      }
      if (hides && poisoned == unknown)
        poisoned = all_finite(values, seen_end - seen, problem.value_dim) ? no : yes;
      const Values here{values.first + (begin - seen) * values.stride_bytes, values.stride_bytes, values.dtype};
      if (hides && poisoned == yes)
        add_values_around_poison(height, scores + begin, here, end - begin, problem.value_dim, width,
                                 workspace.rescale, state.values + first * width);
      else
        add_values(height, scores + begin, here, end - begin, width, workspace.rescale, state.values + first * width);
    }
  }
}

#include "finish.inl.h"
