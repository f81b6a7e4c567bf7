// From the state of some rows to outputs and readings. Included by attend.inl.h only.

// log2 of the denominator, for readings only, and its inverse, sinks included; a row without keys has none.
struct Norm {
  bool empty;
  float inverse;   // 1 / (total + what the sink takes)
  float log_base2;  // log2 of the denominator, relative to the peak
};

static inline Norm norm_of(const Problem& problem, int64_t head, float running_max, float running_sum) {
  if (running_sum == 0.0f) return {true, 0.0f, 0.0f};
  const auto log_base2 = [&](float number) { return problem.wants_statistics ? __builtin_log2f(number) : 0.0f; };
  if (!problem.sinks) return {false, 1.0f / running_sum, log_base2(running_sum)};
  const float sink = (problem.sinks[head] - running_max * problem.score_unit()) * kLog2e;
  if (sink <= 0.0f) {
    const float denominator = running_sum + __builtin_exp2f(sink);
    return {false, 1.0f / denominator, log_base2(denominator)};
  }
  // A sink above the peak is factored out: its exponential could overflow.
  const float shrink = __builtin_exp2f(-sink), rest = running_sum * shrink + 1.0f;
  return {false, shrink / rest, sink + log_base2(rest)};
}

template <bool kHalf>
static void write_narrowed(const float* values, int64_t count, float factor, uint16_t* out) {
  for (int64_t d = 0; d < count; ++d) out[d] = narrow(values[d] * factor, kHalf);
}

static void write_output(const Problem& problem, int64_t item, int64_t head, int64_t token, const float* values,
                         float inverse) {
  const int64_t first =
      item * problem.output_stride[0] + head * problem.output_stride[1] + token * problem.output_stride[2];
  if (problem.dtype == Dtype::float32) {
    float* out = static_cast<float*>(problem.output) + first;
    for (int64_t d = 0; d < problem.value_dim; ++d) out[d] = values[d] * inverse;
  } else {
    const auto write = problem.dtype == Dtype::float16 ? write_narrowed<true> : write_narrowed<false>;
    write(values, problem.value_dim, inverse, static_cast<uint16_t*>(problem.output) + first);
  }
}

static void write_partial(const Problem& problem, int64_t row, float running_max, float running_sum, const float* values) {
  problem.running_max[row] = running_max * problem.score_unit();
  problem.running_sum[row] = running_sum;
  __builtin_memcpy(problem.values + row * problem.value_dim, values, std::size_t(problem.value_dim) * sizeof(float));
}

// Where the readings of a row of a task go; -1 for a row that is not read.
static int64_t place_of_row(const Problem& problem, const Task& task, int64_t row) {
  const Statistics& statistics = problem.statistics;
  const int64_t group = problem.group(), token = task.token(row, group);
  if (!problem.wants_statistics || token < statistics.first_row || token >= statistics.last_row) return -1;
  const int64_t head = task.item * problem.query_heads + task.query_head(row, group);
  return head * (statistics.last_row - statistics.first_row) + token - statistics.first_row;
}

// What the weights of a row in a strip are worth, once its state is finished: its peak may have risen since.
static inline float factor_of(const Problem& problem, const State& state, const ScoreBuffer& strip, int64_t row) {
  const float shift = (strip.running_max[row] - state.softmax[row].running_max) * problem.score_unit_base2();
  return shift == 0.0f ? state.inverse[row] : state.inverse[row] * __builtin_exp2f(shift);
}

// The first `count` numbers of `more` are added to those at p.
static inline void add_first(float* p, Vec more, int64_t count) {
  if (count == kLanes) return store(p, add(load(p), more));
  float numbers[kLanes];
  store(numbers, more);
  for (int64_t i = 0; i < count; ++i) p[i] += numbers[i];
}

// Segment mass of the rows of a finished task, from the sums of runs in its strips.
static void write_segments(const Problem& problem, const Task& task, const State& state, const ScoreBuffer* strips,
                           int64_t strip_count) {
  const Statistics& statistics = problem.statistics;
  const int64_t rows = task.rows();
  for (int64_t first = 0; first < rows; first += kTileRows) {
    const int64_t height = rows - first < kTileRows ? rows - first : kTileRows;
    float* masses[kTileRows];
    for (int64_t r = 0; r < height; ++r) {
      const int64_t place = place_of_row(problem, task, first + r);
      masses[r] = place < 0 ? nullptr : statistics.segment_mass + place * statistics.segments;
      for (int64_t s = 0; masses[r] && s < statistics.segments; ++s) masses[r][s] = 0.0f;
    }
    for (int64_t number = 0; number < strip_count; ++number) {
      const ScoreBuffer& strip = strips[number];
      float factors[kLanes] = {};
      for (int64_t r = 0; r < height; ++r)
        if (strip.running_max[first + r] != -kInfinity) factors[r] = factor_of(problem, state, strip, first + r);
      const float* const sums = strip.range_sums + first / kTileRows * strip.range_count * kPadFloats;
      const int64_t* const segment_ranges = statistics.segment_ranges + 3 * strip.first_range;
      for (int64_t run = 0, count; run < strip.range_count; run += count) {
        // Most often runs follow each other as their segments do.
        Vec totals[kLanes];
        for (count = 0; count < kLanes && run + count < strip.range_count; ++count) {
          if (segment_ranges[3 * (run + count) + 2] != segment_ranges[3 * run + 2] + count) break;
          totals[count] = mul(load(sums + (run + count) * kPadFloats), load(factors));
        }
        for (int64_t i = count; i < kLanes; ++i) totals[i] = zero();
        transpose(totals);
        for (int64_t r = 0; r < height; ++r)
          if (masses[r]) add_first(masses[r] + segment_ranges[3 * run + 2], totals[r], count);
      }
    }
  }
}

static void write_row_statistics(const Problem& problem, int64_t row, const Norm& norm, float running_max, float running_sum,
                               float score_moment, const float* top_scores, const int32_t* top_keys) {
  const Statistics& statistics = problem.statistics;
  const float natural = norm.log_base2 * kLn2;
  statistics.lse[row] = norm.empty ? -kInfinity : running_max * problem.score_unit() + natural;
  statistics.entropy[row] = norm.empty ? 0.0f : norm.inverse * (natural * running_sum - kLn2 * score_moment);
  const Vec anchor = broadcast(norm.empty ? 0.0f : running_max), unit = broadcast(problem.score_unit_base2());
  double top_mass = 0;
  for (int64_t first = 0; first < statistics.top; first += kLanes) {
    const int64_t left = statistics.top - first, count = left < kLanes ? left : kLanes;
    const Vec scores = count < kLanes ? load_n(top_scores + first, int(count)) : load(top_scores + first);
    float weights[kLanes];  // 0 where there is no key: its score is -inf
    store(weights, mul(exp2_nonpositive(mul(sub(scores, anchor), unit)), broadcast(norm.inverse)));
    for (int64_t i = 0; i < count; ++i) {
      statistics.top_keys[row * statistics.top + first + i] = top_keys[first + i];
      statistics.top_weights[row * statistics.top + first + i] = weights[i];
      top_mass += double(weights[i]);
    }
  }
  statistics.top_mass[row] = float(top_mass);
}

// line += factors[R] . weights[R], row after row, for whole vectors.
template <int R>
static inline void add_rows(const float* const* weights, const float* factors, int64_t begin, int64_t end, float* line) {
  Vec spread[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) spread[r] = broadcast(factors[r]);
  for (int64_t j = begin; j < end; j += kLanes) {
    Vec mass = load(line + j);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) mass = mul_add(load(weights[r] + j), spread[r], mass);
    store(line + j, mass);
  }
}

// line = factor . weights of a row for a block of keys.
static void scale_row(const ScoreBuffer& strip, int64_t block, int64_t rows, int64_t row, float factor, float* line) {
  const int64_t tile = block * rows + row / kTileRows * kTileRows, begin = strip.begin[tile];
  const int64_t end = factor == 0.0f ? begin : strip.end[tile];
  const float* const weights = strip.weights + (block * rows + row) * kBlockKeys;
  int64_t j = 0;
  for (; j < begin; j += kLanes) store(line + j, zero());
  for (; j < end; j += kLanes) store(line + j, mul(load(weights + j), broadcast(factor)));
  for (; j < kBlockKeys; j += kLanes) store(line + j, zero());
}

// line = the sum of factor . weights of every step-th row for a block of keys.
static void sum_rows(const ScoreBuffer& strip, int64_t block, int64_t rows, int64_t row, int64_t step, const float* factors,
                     float* line) {
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) store(line + j, zero());
  for (int64_t tile = 0; tile < rows; tile += kTileRows) {
    const int64_t begin = strip.begin[block * rows + tile], end = strip.end[block * rows + tile];
    const float* weights[kTileRows];
    float counted[kTileRows];
    int64_t count = 0;
    for (; row < tile + kTileRows && row < rows; row += step) {
      const float* here = strip.weights + (block * rows + row) * kBlockKeys;
      const float factor = factors[row];
      if (factor == 0.0f || begin >= end) continue;
      if (factor == factor) {
        weights[count] = here;
        counted[count++] = factor;
        continue;
      }
      // A NaN row is counted where it looked, not where it could not look.
      for (int64_t j = begin; j < end; ++j)
        if (here[j] != 0.0f) line[j] += factor;
    }
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) add_rows<4>(weights + r, counted + r, begin, end, line);
    for (; r < count; ++r) add_rows<1>(weights + r, counted + r, begin, end, line);
  }
}

// Whether a row of the strip sees a key of the block.
static bool is_seen(const ScoreBuffer& strip, int64_t block, int64_t rows) {
  for (int64_t tile = 0; tile < rows; tile += kTileRows)
    if (strip.begin[block * rows + tile] < strip.end[block * rows + tile]) return true;
  return false;
}

// Key mass: row weight x weight, per block in float32, across blocks of rows in float64.
static void accumulate_key_mass(const Problem& problem, const Task& task, const State& state, const ScoreBuffer& strip,
                        const Workspace& workspace, double* sums, float* mass) {
  const Statistics& statistics = problem.statistics;
  const int64_t rows = task.rows(), group = problem.group();
  float* const factors = workspace.rescale;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = task.token(row, group), head = task.query_head(row, group);
    const bool counts = token >= statistics.first_row && token < statistics.last_row && strip.running_max[row] != -kInfinity;
    factors[row] = counts ? factor_of(problem, state, strip, row) : 0.0f;
    if (counts && statistics.query_weights)
      factors[row] *= statistics.query_weights[task.item * statistics.query_weight_stride[0] + head * statistics.query_weight_stride[1] +
                                          token * statistics.query_weight_stride[2]];
  }
  for (int64_t block = 0; block < strip.block_count; ++block) {
    const int64_t first_key = strip.first_key + block * kBlockKeys;
    const int64_t left = strip.key_count - block * kBlockKeys, known = left < kBlockKeys ? left : kBlockKeys;
    if (sums && !is_seen(strip, block, rows)) continue;
    for (int64_t head = 0; head < group; ++head) {
      const int64_t column = head * problem.keys + first_key;
      // The last block may be cut short, where whole vectors would be written over what follows.
      float* const line = sums || known < kBlockKeys ? workspace.block_row : mass + column;
      const int64_t row = (head - task.first_row % group + group) % group;
      // Most often one row decodes one token: it need not be added to anything.
      if (rows == group && factors[row] == factors[row])
        scale_row(strip, block, rows, row, factors[row], line);
      else
        sum_rows(strip, block, rows, row, group, factors, line);
      if (sums)
        for (int64_t j = 0; j < known; ++j) sums[column + j] += double(line[j]);
      else if (line == workspace.block_row)
        __builtin_memcpy(mass + column, line, std::size_t(known) * sizeof(float));
    }
  }
}

static void finish(const Problem& problem, const Task& task, const State& state, const ScoreBuffer* strips, int64_t strip_count) {
  const Statistics& statistics = problem.statistics;
  const int64_t group = problem.group(), width = problem.value_width(), rows = task.rows();
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = task.token(row, group), head = task.query_head(row, group);
    const float* values = state.values + row * width;
    const Norm norm = norm_of(problem, head, state.softmax[row].running_max, state.softmax[row].running_sum);
    if (problem.running_max)
      write_partial(problem, (task.item * problem.query_heads + head) * problem.queries + token, state.softmax[row].running_max,
                    state.softmax[row].running_sum, values);
    else
      write_output(problem, task.item, head, token, values, norm.inverse);
    state.inverse[row] = norm.inverse;
    const int64_t place = place_of_row(problem, task, row);
    if (place >= 0)
      write_row_statistics(problem, place, norm, state.softmax[row].running_max, state.softmax[row].running_sum, state.softmax[row].score_moment,
                         state.top_scores + row * statistics.top, state.top_keys + row * statistics.top);
  }
  if (problem.wants_statistics && statistics.segment_mass) write_segments(problem, task, state, strips, strip_count);
}
