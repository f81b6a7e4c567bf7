// THE kernel, written once. A target file defines a vector vocabulary in its own namespace and includes this file
// there; nothing may leave that namespace, because every target is compiled with other flags.
//
// Accumulators are float32. Tails: keys are padded with zeros to whole panels and hidden by score -inf; value columns
// are padded with zeros to value_width; rows have a tile of their own height. Vocabulary: see targets/portable.cpp.

static constexpr float kLog2e = 1.44269504088896340736f;
static constexpr float kLn2 = 0.693147180559945309417f;
static constexpr float kInfinity = __builtin_inff();
static constexpr int64_t kLineBytes = 64;

// Lane i is the sum of tile[i], kLanes of them.
static inline Vec sum_each(const Vec* tile) {
  Vec folded[kLanes / kFold];
  for (int i = 0; i < kLanes / kFold; ++i) folded[i] = fold(tile + i * kFold);
  return sum_folded(folded);
}

#include "exp.inl.h"
#include "visible.inl.h"
#include "pack.inl.h"
#include "partial.h"
#include "score.inl.h"
#include "top.inl.h"
#include "value.inl.h"

static_assert(kTileRows <= kMaxTileRows && kTileRows <= kLanes && kRowsInPlace <= kTileRows && kLanes <= 16);
static_assert(kPadFloats % kLanes == 0 && kBlockKeys % kPanelKeys == 0 && kPanelKeys <= 32);

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

// Over whole panels; NaN is passed over.
static inline Vec largest_of_lanes(const float* scores, int64_t begin, int64_t end, Vec largest) {
  Vec other = largest;
  for (int64_t j = begin; j < end; j += kPanelKeys) {
    largest = max(load(scores + j), largest);
    other = max(load(scores + j + kLanes), other);
  }
  return max(other, largest);
}

// Weights of V vectors of scores.
template <int V, bool kMoments>
static inline void weights_of(const float* scores, Vec running_max, Vec unit, Vec& running_sum, Vec& score_moment, Vec* weights) {
  Vec x[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) x[v] = mul(sub(load(scores + v * kLanes), running_max), unit);
  exp2_nonpositive<V>(x, weights);
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    if (kMoments) score_moment = mul_add(weights[v], x[v], score_moment);
    running_sum = add(running_sum, weights[v]);
  }
}

static void clear_state(const Problem& problem, const Task& task, const State& state) {
  const int64_t rows = task.rows(), top = problem.top();
  for (int64_t row = 0; row < rows; ++row) {
    state.softmax[row].running_max = -kInfinity;
    state.softmax[row].running_sum = state.softmax[row].score_moment = 0.0f;
  }
  __builtin_memset(state.values, 0, std::size_t(rows * problem.value_width()) * sizeof(float));
  for (int64_t i = 0; i < rows * top; ++i) {
    state.top_scores[i] = -kInfinity;
    state.top_keys[i] = -1;
  }
}

// Sums of the first `count` weights of R rows, lane r that of row r.
template <int R>
static inline Vec sums_of_rows(int64_t rows, const float* weights, int64_t count) {
  if constexpr (R > 1) {
    if (rows < R) return sums_of_rows<R - 1>(rows, weights, count);
  }
  Vec sums[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) sums[r] = zero();
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes)
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sums[r] = add(sums[r], load(weights + r * kBlockKeys + j));
  if (j < count)
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sums[r] = add(sums[r], load_n(weights + r * kBlockKeys + j, int(count - j)));
  return sum_each(sums);
}

// One task: the scores of all its rows and keys wait in the strip for their rows' peaks (exact two-step softmax); the
// weights take their place where a reading wants them. A row whose keys are more than one task's moves its peak from task
// to task (online).
struct Pass {
  const Problem& problem;
  const Task& task;
  const Workspace& workspace;
  const State& state;
  const ScoreBuffer& strip;

  const bool pairs = uses_pairs(problem);
  // Few rows use each value a few times only: copying them first would cost more than converting them as they come.
  const bool keys_in_place = scores_in_place(task);
  const bool values_in_place = !task.packed && task.rows() <= (problem.dtype == Dtype::float32 ? 4 : 1) * kTileRows &&
                               problem.value_dim == problem.value_width();
  const bool value_pairs = pairs && (!values_in_place || problem.stored == Dtype::int8);
  const bool by_key = problem.visibility.documents || problem.visibility.allowed;
  const int64_t depth = key_depth(problem, pairs), width = problem.value_width(), group = problem.group();
  const int64_t rows = task.rows();
  const Span seen = span_of_rows(problem, task);
  Span* const spans = reinterpret_cast<Span*>(workspace.visible);
  TileSpans* const tiles = reinterpret_cast<TileSpans*>(workspace.tile_visible);

  // The block whose keys, values are packed in the workspace, and that whose values are known to be finite or not.
  int64_t packed_keys = -1, packed_values = -1, examined = -1;
  bool finite = true;

  // A block of keys: its first, how many, which of them some row of the task sees, and the first run that meets it.
  struct Block {
    int64_t number, first, count, seen, seen_end, run;
    int64_t panels() const { return seen / kPanelKeys * kPanelKeys; }
  };

  Block block_of(int64_t number) const {
    const int64_t first = task.first_key + number * kBlockKeys, left = task.last_key - first;
    Block block{number, first, left < kBlockKeys ? left : kBlockKeys, 0, 0, 0};
    if (strip.range_count) block.run = problem.statistics.ranges_ended(first);
    block.seen = block.count;
    widen_to(seen, first, block.count, block.seen, block.seen_end);
    return block;
  }

  int64_t place(int64_t block, int64_t row) const { return block * rows + row; }
  float* line(int64_t block, int64_t row) const { return strip.weights + place(block, row) * kBlockKeys; }

  // Panels of the block, counted from its first key.
  const float* panels_of(const Block& block) {
    if (task.packed) return task.packed->keys + block.first * depth;
    if (packed_keys != block.number)
      pack_keys(problem, task, block.first + block.panels(), block.first + block.seen_end, pairs, workspace.keys);
    packed_keys = block.number;
    return workspace.keys - block.panels() * depth;
  }

  // PackedHead values of the block, counted from its first key; a row holds one key, or a pair of keys.
  Values values_of(const Block& block) {
    const int64_t row_bytes = width * int64_t(sizeof(float)), keys_per_row = value_pairs ? 2 : 1;
    const float* first;
    if (task.packed) {
      first = task.packed->values + block.first / keys_per_row * width;
    } else {
      if (packed_values != block.number)
        pack_values(problem, task, block.first + block.panels(), block.first + block.seen, block.first + block.seen_end,
                    value_pairs, workspace.values);
      packed_values = block.number;
      first = workspace.values - block.panels() / keys_per_row * width;
    }
    return {reinterpret_cast<const char*>(first), row_bytes, Dtype::float32, nullptr, true};
  }

  // The keys to be packed next, one block behind these: a tile of rows asks for a line of them with every step it takes.
  Ahead ahead_of(const Block& block, int64_t key, int64_t first_row, const float* panel) const {
    const int64_t row_bytes = problem.head_dim * bytes_of(problem.stored);
    if (!task.packed) {
      const Stretch keys = stretch_of(problem, task, &Chunk::key, block.first, block.first + block.count);
      if (keys.stride_bytes == row_bytes)
        return {keys.row + (kBlockKeys + key) * row_bytes + first_row / kTileRows * depth * kLineBytes, kLineBytes};
    }
    return {reinterpret_cast<const char*>(panel), 0};
  }

  bool is_finite(const Block& block) {
    if (problem.stored == Dtype::int8) return true;
    if (task.packed) return task.packed->finite[block.first / kBlockKeys];
    if (examined != block.number)
      finite = all_finite(problem, task, block.first + block.seen, block.first + block.seen_end);
    examined = block.number;
    return finite;
  }

  // Scores of a tile of rows against a block of keys, transformed and hidden; the largest of every lane.
  void score(const Block& block, int64_t first, int64_t height) {
    const TileSpans& tile_spans = tiles[first / kTileRows];
    int64_t begin = block.count, end = 0;
    widen_to(tile_spans.any, block.first, block.count, begin, end);
    if (begin >= end) begin = end = 0;
    const int64_t panel_begin = begin / kPanelKeys * kPanelKeys, panel_end = round_up(end, kPanelKeys);
    strip.begin[place(block.number, first)] = int32_t(panel_begin);
    strip.end[place(block.number, first)] = int32_t(end);
    if (begin >= end) return;

    // They are on their way while scores are computed.
    if (problem.stored == Dtype::int8)
      for (const auto side : {&Chunk::key, &Chunk::value})
        each_stretch(problem, task, side, block.first + begin, block.first + end, [](const Stretch& stretch, int64_t) {
          for (int64_t j = 0; j < stretch.count; j += kLineBytes / int64_t(sizeof(float)))
            prefetch(reinterpret_cast<const char*>(stretch.scales + j));
        });

    float* scores = line(block.number, first);
    const float* queries = workspace.queries + first * (keys_in_place ? round_up(depth, kLanes) : depth);
    if (keys_in_place) {
      each_stretch(problem, task, &Chunk::key, block.first + panel_begin, block.first + end,
                   [&](const Stretch& keys, int64_t key) {
        for (int64_t r = 0; r < height; r += kRowsInPlace)
          score_rows_in_place(height - r, problem, keys, pairs, queries + r * round_up(depth, kLanes),
                              scores + r * kBlockKeys + key - block.first);
      });
      for (int64_t r = 0; r < height; ++r)
        for (int64_t j = end; j < panel_end; ++j) scores[r * kBlockKeys + j] = 0.0f;
    } else {
      const auto tile = pairs ? score_rows<kTileRows, 2, kHasBf16Dot> : score_rows<kTileRows, 2, false>;
      const auto half = pairs ? score_rows<kTileRows, 1, kHasBf16Dot> : score_rows<kTileRows, 1, false>;
      const float* panels = panels_of(block);
      for (int64_t j = panel_begin; j < panel_end; j += kPanelKeys) {
        const float* panel = panels + j * depth;
        (end - j > kLanes ? tile : half)(height, queries, panel, depth, ahead_of(block, j, first, panel), scores + j);
      }
    }
    if (problem.stored == Dtype::int8) {
      each_stretch(problem, task, &Chunk::key, block.first + panel_begin, block.first + end,
                   [&](const Stretch& keys, int64_t key) {
        float* here = scores + key - block.first;
        times_scales(height, here, keys.scales, keys.count, here);
      });
    }

    // A bias of -inf hides as well; keys behind the last have no values that could leak.
    const bool hides =
        by_key || problem.bias.data || !covers(tile_spans.all, block.first + panel_begin, block.first + end);
    const bool transforms = problem.transforms();
    for (int64_t r = 0; r < height; ++r, scores += kBlockKeys) {
      const int64_t row = first + r;
      if (transforms)
        transform_row(problem, task.item, task.query_head(row, group), task.token(row, group), block.first,
                      panel_begin, panel_end, workspace.block_row, scores);
      if (hides || end < panel_end) hide_outside(spans[row], block.first, panel_begin, panel_end, scores);
      if (by_key)
        hide_by_key(problem, task.item, task.query_head(row, group), task.token(row, group), block.first, panel_begin,
                    end, scores);
      float* largest = workspace.lane_max + row * kLanes;
      store(largest, largest_of_lanes(scores, panel_begin, panel_end, load(largest)));
    }
    strip.hides[place(block.number, first)] = hides;
  }

  // A row's peak rises to its largest score; the factor for what the row gathered below it goes to the workspace.
  void update_running_max(int64_t row) {
    const float largest = reduce_max(load(workspace.lane_max + row * kLanes));
    const float before = state.softmax[row].running_max;
    float rescale = 1.0f;
    if (largest > before) {
      state.softmax[row].running_max = largest;
      if (before == -kInfinity) {
        rescale = 0.0f;
      } else {
        const float shift = (before - largest) * problem.score_unit_base2();
        rescale = __builtin_exp2f(shift);
        state.softmax[row].score_moment = rescale * (state.softmax[row].score_moment + shift * state.softmax[row].running_sum);
      }
      state.softmax[row].running_sum *= rescale;
    }
    workspace.rescale[row] = rescale;
    strip.running_max[row] = state.softmax[row].running_max;
    store(workspace.lane_sums + row * kLanes, zero());
    store(workspace.lane_moments + row * kLanes, zero());
  }

  // The heaviest keys of a row move on.
  void select_top_k(int64_t row) {
    const int64_t top = problem.top();
    const Vec of_lanes = load(workspace.lane_max + row * kLanes);
    if (!(reduce_max(of_lanes) > state.top_scores[row * top + top - 1])) return;
    Contest contest(workspace, top, state.top_scores + row * top, state.top_keys + row * top);
    contest.begin(of_lanes);
    const int64_t tile = row / kTileRows * kTileRows;
    // Without a bar all keys would wait at once; each block raises it.
    const int64_t step = contest.bar > -kInfinity ? strip.block_count : 1;
    for (int64_t first = 0; first < strip.block_count; first += step) {
      for (int64_t block = first; block < first + step; ++block)
        contest.list(line(block, row), strip.begin[place(block, tile)], strip.end[place(block, tile)],
                     int32_t(block * kBlockKeys));
      contest.take([&](int32_t key) { return line(key / kBlockKeys, row) + key % kBlockKeys; }, int32_t(task.first_key));
    }
    contest.settle();
  }

  // Scores of a tile of rows against the keys begin .. end - 1 of a block become weights exp(score - peak), as floats, as
  // pairs, or both.
  template <bool kMoments, bool kPairs>
  void weigh(int64_t first, int64_t height, const float* scores, int64_t begin, int64_t end, float* weights,
             float* pairs) {
    const Vec unit = broadcast(problem.score_unit_base2());
    for (int64_t r = 0; r < height; ++r, scores += kBlockKeys) {
      // A row that has seen no key yet keeps total 0: its weights come out as 0 against any finite anchor.
      const float running_max = state.softmax[first + r].running_max;
      const Vec anchor = broadcast(running_max == -kInfinity ? 0.0f : running_max);
      float* const totals = workspace.lane_sums + (first + r) * kLanes;
      float* const moments = workspace.lane_moments + (first + r) * kLanes;
      Vec running_sum = load(totals), score_moment = load(moments);
      const auto weigh_panels = [&](auto panels, int64_t j) {
        constexpr int kVectors = 2 * panels;
        Vec found[kVectors];
        weights_of<kVectors, kMoments>(scores + j, anchor, unit, running_sum, score_moment, found);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          if (!kPairs || kMoments) store(weights + r * kBlockKeys + j + v * kLanes, found[v]);
          if (kPairs && v % 2 == 0)
            store(pairs + r * kBlockKeys + (j + v * kLanes) / 2, to_pairs(found[v], found[v + 1]));
        }
      };
      int64_t j = begin;
      constexpr int64_t kStep = kPanelsWeighed * kPanelKeys;
      for (; j + kStep <= end; j += kStep) weigh_panels(Count<kPanelsWeighed>{}, j);
      for (; j < end; j += kPanelKeys) weigh_panels(Count<1>{}, j);
      store(totals, running_sum);
      if (kMoments) store(moments, score_moment);
    }
  }

  // The weights of a tile of rows against a block count for the runs of keys that they belong to.
  void sum_segment_ranges(const Block& block, int64_t first, int64_t height, int64_t begin, int64_t end) {
    const Statistics& statistics = problem.statistics;
    const float* const weights = line(block.number, first);
    float* const sums = strip.range_sums + (first / kTileRows * strip.range_count - strip.first_range) * kPadFloats;
    for (int64_t run = block.run; run < strip.first_range + strip.range_count; ++run) {
      const int64_t from = clamp(statistics.segment_ranges[3 * run] - block.first, begin, end);
      const int64_t to = clamp(statistics.segment_ranges[3 * run + 1] - block.first, begin, end);
      if (from == end) break;
      if (from == to) continue;
      store(sums + run * kPadFloats, add(load(sums + run * kPadFloats), sums_of_rows<kTileRows>(height, weights + from, to - from)));
    }
  }

  // Weights of a tile of rows times the values of a block.
  void gather(const Block& block, int64_t first, int64_t height) {
    const int64_t begin = strip.begin[place(block.number, first)], end = strip.end[place(block.number, first)];
    if (begin >= end) return;
    float* rescale = workspace.rescale + first;
    float* outputs = state.values + first * width;
    // Only keys that some row of the task sees have values that may be looked at.
    const int64_t from = begin > block.seen ? begin : block.seen;
    const bool poisoned = strip.hides[place(block.number, first)] && !is_finite(block);
    const bool scaled = problem.stored == Dtype::int8, takes_pairs = value_pairs && !poisoned;

    // Weights stay in the strip where a reading wants them; else they are gone after this.
    float* const scores = line(block.number, first);
    float* weights = problem.wants_statistics ? scores : workspace.tile_weights;
    const bool as_pairs = takes_pairs && !scaled;
    const auto weigh_tile = problem.wants_statistics ? (as_pairs ? &Pass::weigh<true, kHasBf16Dot> : &Pass::weigh<true, false>)
                                          : (as_pairs ? &Pass::weigh<false, kHasBf16Dot> : &Pass::weigh<false, false>);
    (this->*weigh_tile)(first, height, scores, begin, end, weights, workspace.tile_weights);
    if (strip.range_count) sum_segment_ranges(block, first, height, begin, end);
    if (scaled) {
      each_stretch(problem, task, &Chunk::value, block.first + begin, block.first + end,
                   [&](const Stretch& values, int64_t key) {
        const int64_t j = key - block.first;
        times_scales(height, weights + j, values.scales, values.count, workspace.tile_weights + j);
      });
      for (int64_t r = 0; r < height; ++r) {
        float* const row = workspace.tile_weights + r * kBlockKeys;
        for (int64_t j = end; j < round_up(end, kPanelKeys); ++j) row[j] = 0.0f;
        for (int64_t j = begin; takes_pairs && j < end; j += kPanelKeys)
          store(row + j / 2, to_pairs(load(row + j), load(row + j + kLanes)));
      }
    }
    if (scaled || as_pairs) weights = workspace.tile_weights;

    if (poisoned || (values_in_place && !value_pairs)) {
      const float* factors = rescale;
      each_stretch(problem, task, &Chunk::value, block.first + from, block.first + end,
                   [&](const Stretch& stretch, int64_t key) {
        const Values values{stretch.row, stretch.stride_bytes, problem.stored};
        const float* here = weights + key - block.first;
        if (poisoned)
          add_values_around_poison(height, here, values, stretch.count, problem.value_dim, width, factors, outputs);
        else
          add_values(height, here, values, stretch.count, width, factors, outputs);
        factors = nullptr;
      });
    } else if (values_in_place) {
      const char* values[kBlockKeys];
      rows_of(problem, task, &Chunk::value, block.first + begin, block.first + end, values);
      if ((end - begin) % 2) values[end - begin] = values[end - begin - 1];  // its weight is 0
      add_values<Dtype::int8, kHasBf16Dot>(height, weights + begin / 2, {nullptr, 2 * width, Dtype::int8, values},
                                          (end - begin + 1) / 2, width, rescale, outputs);
    } else {
      Values values = values_of(block);
      values.first += begin / (value_pairs ? 2 : 1) * values.stride_bytes;
      if (value_pairs)
        add_values<Dtype::float32, kHasBf16Dot>(height, weights + begin / 2, values, (end - begin + 1) / 2, width, rescale,
                                               outputs);
      else
        add_values_by_tiles<kPackedRows, kPackedVectors, Dtype::float32, false>(height, weights + begin, values,
                                                                                end - begin, width, rescale, outputs);
    }
    for (int64_t r = 0; r < height; ++r) rescale[r] = 1.0f;
  }

  template <typename Work>
  void each_tile(Work work) const {
    for (int64_t number = 0; number < strip.block_count; ++number) {
      const Block block = block_of(number);
      for (int64_t row = 0; row < rows; row += kTileRows) work(block, row, rows - row < kTileRows ? rows - row : kTileRows);
    }
  }

  void run() {
    if (strip.range_count) {
      const int64_t sums = (rows + kTileRows - 1) / kTileRows * strip.range_count * kPadFloats;
      __builtin_memset(strip.range_sums, 0, std::size_t(sums) * sizeof(float));
    }
    for (int64_t row = 0; row < rows; ++row) store(workspace.lane_max + row * kLanes, broadcast(-kInfinity));
    each_tile([&](const Block& block, int64_t row, int64_t height) { score(block, row, height); });
    for (int64_t row = 0; row < rows; ++row) {
      update_running_max(row);
      if (problem.top()) select_top_k(row);
    }
    each_tile([&](const Block& block, int64_t row, int64_t height) { gather(block, row, height); });
    for (int64_t row = 0; row < rows; ++row) {
      state.softmax[row].running_sum += sum(load(workspace.lane_sums + row * kLanes));
      if (problem.wants_statistics) state.softmax[row].score_moment += sum(load(workspace.lane_moments + row * kLanes));
    }
  }
};

static void compute(const Problem& problem, const Task& task, const Workspace& workspace, const State& state,
                    const ScoreBuffer& strip) {
  // Weights next to nothing would slow some CPUs down.
  const FlushSubnormals guard;
  Pass pass{problem, task, workspace, state, strip};
  for (int64_t row = 0; row < pass.rows; ++row) {
    const bool as_before = row && (sees_alike(problem) || (task.first_row + row) % pass.group);
    pass.spans[row] = as_before ? pass.spans[row - 1] : span_of(problem, task, task.token(row, pass.group));
  }
  for (int64_t row = 0; row < pass.rows; row += kTileRows)
    pass.tiles[row / kTileRows] = spans_of_tile(pass.spans + row, clamp(pass.rows - row, 1, kTileRows));
  if (!task.continues) {
    clear_state(problem, task, state);
    pack_queries(problem, task, pass.pairs, pass.keys_in_place, workspace.queries);
  }
  pass.run();
}

// Packs the blocks of the task's keys that one of its rows sees, for all tasks of the head.
static void pack(const Problem& problem, const Task& task, const PackedHead& packed) {
  const bool pairs = uses_pairs(problem);
  const int64_t depth = key_depth(problem, pairs), width = problem.value_width();
  const Span span = span_of_rows(problem, task);
  for (int64_t first = task.first_key; first < task.last_key; first += kBlockKeys) {
    const int64_t left = task.last_key - first, count = left < kBlockKeys ? left : kBlockKeys;
    int64_t seen = count, seen_end = 0;
    widen_to(span, first, count, seen, seen_end);
    if (seen >= seen_end) continue;
    const int64_t panels = first + seen / kPanelKeys * kPanelKeys;
    pack_keys(problem, task, panels, first + seen_end, pairs, packed.keys + panels * depth);
    pack_values(problem, task, panels, first + seen, first + seen_end, pairs,
                packed.values + panels / (pairs ? 2 : 1) * width);
    packed.finite[first / kBlockKeys] = all_finite(problem, task, first + seen, first + seen_end);
  }
}

#include "finish.inl.h"
