// From the state of some rows to outputs and readings. Included by attend.inl.h only.

// log2 of the denominator, for readings only, and its inverse, sinks included; a row without keys has none.
struct Norm {
  bool empty;
  float inverse;   // 1 / (total + what the sink takes)
  float log_base2;  // log2 of the denominator, relative to the peak
};

static inline Norm norm_of(const Problem& problem, int64_t head, float peak, float total) {
  if (total == 0.0f) return {true, 0.0f, 0.0f};
  const auto log_base2 = [&](float number) { return problem.reads ? __builtin_log2f(number) : 0.0f; };
  if (!problem.sinks) return {false, 1.0f / total, log_base2(total)};
  const float sink = (problem.sinks[head] - peak * problem.score_unit()) * kLog2e;
  if (sink <= 0.0f) {
    const float denominator = total + __builtin_exp2f(sink);
    return {false, 1.0f / denominator, log_base2(denominator)};
  }
  // A sink above the peak is factored out: its exponential could overflow.
  const float shrink = __builtin_exp2f(-sink), rest = total * shrink + 1.0f;
  return {false, shrink / rest, sink + log_base2(rest)};
}

static void write_output(const Problem& problem, int64_t item, int64_t head, int64_t token, const float* values,
                         float inverse) {
  const int64_t first =
      item * problem.output_stride[0] + head * problem.output_stride[1] + token * problem.output_stride[2];
  if (problem.dtype == Dtype::float32) {
    float* out = static_cast<float*>(problem.output) + first;
    for (int64_t d = 0; d < problem.value_dim; ++d) out[d] = values[d] * inverse;
  } else {
    uint16_t* out = static_cast<uint16_t*>(problem.output) + first;
    const bool half = problem.dtype == Dtype::float16;
    for (int64_t d = 0; d < problem.value_dim; ++d) out[d] = narrow(values[d] * inverse, half);
  }
}

static void write_partial(const Problem& problem, int64_t row, float peak, float total, const float* values) {
  problem.peak[row] = peak * problem.score_unit();
  problem.total[row] = total;
  __builtin_memcpy(problem.values + row * problem.value_dim, values, std::size_t(problem.value_dim) * sizeof(float));
}

// Sums of many short runs of numbers, kLanes of them reduced at a time.
struct RunSums {
  explicit RunSums(float* mass) : mass(mass) {}  // the rest is written before it is read

  float* mass;
  int64_t waiting = 0;
  int64_t segments[kLanes];
  Vec sums[kLanes];

  void take(const float* numbers, int64_t count, float factor, int64_t segment) {
    Vec total = zero();
    for (; count >= kLanes; count -= kLanes, numbers += kLanes) total = add(total, load(numbers));
    if (count) total = add(total, load_first(numbers, int(count)));
    segments[waiting] = segment;
    sums[waiting++] = mul(total, broadcast(factor));
    if (waiting == kLanes) settle();
  }

  void settle() {
    for (int64_t i = waiting; i < kLanes; ++i) sums[i] = zero();
    float totals[kLanes];
    store(totals, sum_each(sums));
    for (int64_t i = 0; i < waiting; ++i) mass[segments[i]] += totals[i];
    waiting = 0;
  }
};

// Segment mass of one row: its weights, block by block, against the runs.
static void write_segments(const Problem& problem, const Strip* strips, int64_t strip_count, int64_t rows, int64_t row,
                           float peak, float inverse, float* mass) {
  const Reading& reading = problem.reading;
  for (int64_t s = 0; s < reading.segments; ++s) mass[s] = 0.0f;
  RunSums sums(mass);
  int64_t run = 0;
  for (int64_t number = 0; number < strip_count; ++number) {
    const Strip& strip = strips[number];
    if (strip.peaks[row] == -kInfinity) continue;
    const float factor = __builtin_exp2f((strip.peaks[row] - peak) * problem.score_unit_base2()) * inverse;
    for (int64_t block = 0; block < strip.blocks; ++block) {
      const int64_t place = block * rows + row;
      if (strip.begin[place] >= strip.end[place]) continue;
      const int64_t first_key = strip.first_key + block * kBlockKeys;
      const int64_t begin = first_key + strip.begin[place], end = first_key + strip.end[place];
      const float* weights = strip.weights + place * kBlockKeys - first_key;
      while (run < reading.run_count && reading.runs[3 * run + 1] <= begin) ++run;
      for (int64_t i = run; i < reading.run_count && reading.runs[3 * i] < end; ++i) {
        const int64_t from = reading.runs[3 * i] > begin ? reading.runs[3 * i] : begin;
        const int64_t to = reading.runs[3 * i + 1] < end ? reading.runs[3 * i + 1] : end;
        sums.take(weights + from, to - from, factor, reading.runs[3 * i + 2]);
      }
    }
  }
  sums.settle();
}

static void write_row_readings(const Problem& problem, int64_t row, const Norm& norm, float peak, float total,
                               float moment, const float* top_scores, const int32_t* top_keys) {
  const Reading& reading = problem.reading;
  const float natural = norm.log_base2 * kLn2;
  reading.lse[row] = norm.empty ? -kInfinity : peak * problem.score_unit() + natural;
  reading.entropy[row] = norm.empty ? 0.0f : norm.inverse * (natural * total - kLn2 * moment);
  double covered = 0;
  for (int64_t i = 0; i < reading.top; ++i) {
    const bool found = top_keys[i] >= 0;
    const float weight =
        found ? __builtin_exp2f((top_scores[i] - peak) * problem.score_unit_base2()) * norm.inverse : 0.0f;
    reading.top_keys[row * reading.top + i] = top_keys[i];
    reading.top_weights[row * reading.top + i] = weight;
    covered += double(weight);
  }
  reading.covered[row] = float(covered);
}

// Key mass: row weight x weight, per block in float32, across blocks of rows in float64.
static void add_columns(const Problem& problem, const Task& task, const State& state, const Strip& strip,
                        const Workspace& workspace, double* sums, float* mass) {
  const Reading& reading = problem.reading;
  const int64_t rows = task.rows(), group = problem.group();
  float* line = workspace.line;
  for (int64_t block = 0; block < strip.blocks; ++block) {
    const int64_t first_key = strip.first_key + block * kBlockKeys;
    const int64_t left = strip.keys - block * kBlockKeys, known = left < kBlockKeys ? left : kBlockKeys;
    for (int64_t head = 0; head < group; ++head) {
      for (int64_t j = 0; j < kBlockKeys; j += kLanes) store(line + j, zero());
      for (int64_t row = (head - task.first_row % group + group) % group; row < rows; row += group) {
        const int64_t place = block * rows + row, token = (task.first_row + row) / group;
        if (strip.begin[place] >= strip.end[place] || strip.peaks[row] == -kInfinity) continue;
        if (token < reading.first_row || token >= reading.last_row) continue;
        const float shift = (strip.peaks[row] - state.peak[row]) * problem.score_unit_base2();
        float factor = state.inverse[row] * __builtin_exp2f(shift);
        if (reading.row_weights)
          factor *= reading.row_weights[task.item * reading.row_weight_stride[0] +
                                        (task.key_head * group + head) * reading.row_weight_stride[1] +
                                        token * reading.row_weight_stride[2]];
        if (factor == 0.0f) continue;
        const float* weights = strip.weights + place * kBlockKeys;
        if (factor != factor) {  // a NaN row is counted where it looked, not where it could not look
          for (int64_t j = strip.begin[place]; j < strip.end[place]; ++j)
            if (weights[j] != 0.0f) line[j] += factor;
          continue;
        }
        const Vec spread = broadcast(factor);
        for (int64_t j = strip.begin[place]; j < strip.end[place]; j += kLanes)
          store(line + j, mul_add(load(weights + j), spread, load(line + j)));
      }
      const int64_t column = head * problem.keys + first_key;
      if (sums)
        for (int64_t j = 0; j < known; ++j) sums[column + j] += double(line[j]);
      else
        __builtin_memcpy(mass + column, line, std::size_t(known) * sizeof(float));
    }
  }
}

static void finish(const Problem& problem, const Task& task, const State& state, const Strip* strips, int64_t strip_count) {
  const Reading& reading = problem.reading;
  const int64_t group = problem.group(), width = problem.value_width(), rows = task.rows();
  const int64_t tokens_read = reading.last_row - reading.first_row;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = (task.first_row + row) / group;
    const int64_t head = task.key_head * group + (task.first_row + row) % group;
    const int64_t heads_before = task.item * problem.query_heads + head;
    const float* values = state.values + row * width;
    const Norm norm = norm_of(problem, head, state.peak[row], state.total[row]);
    if (problem.peak)
      write_partial(problem, heads_before * problem.queries + token, state.peak[row], state.total[row], values);
    else
      write_output(problem, task.item, head, token, values, norm.inverse);
    state.inverse[row] = norm.inverse;
    if (!problem.reads || token < reading.first_row || token >= reading.last_row) continue;
    const int64_t place = heads_before * tokens_read + token - reading.first_row;
    write_row_readings(problem, place, norm, state.peak[row], state.total[row], state.moment[row],
                       state.top_scores + row * reading.top, state.top_keys + row * reading.top);
    if (reading.segment_mass)
      write_segments(problem, strips, strip_count, rows, row, state.peak[row], norm.inverse,
                     reading.segment_mass + place * reading.segments);
  }
}
