// Weights times values, for a tile of rows. Included by attend.inl.h.

// Values read in place come in strips of this many bytes.
static constexpr int64_t kValueStripBytes = 8192;
// So few rows take twice as many columns at once: their accumulators fit, and a row of values is read from end to end.
static constexpr int kFewRows = 2;

// outputs[R][C kLanes] = outputs x rescale[R] + weights[R][keys] . values[keys][C kLanes], from column `first` on; a
// null rescale is 1. Of pairs of bfloat16, weights and values, one lane counts as one key.
template <int R, int C, Dtype kDtype, bool kPairs>
static void value_tile(const float* weights, const Values& values, int64_t first, int64_t keys, int64_t width,
                       const float* rescale, float* outputs) {
  // PackedHead values come a block at a time and get sums of their own, for rounding errors grow with the length of a chain;
  // those in place may come in pieces, over which the chain goes on, so that the bits do not depend on them.
  const auto scaled_before = [&](int r, int c, Vec more) {
    const Vec before = load(outputs + r * width + c * kLanes);
    return rescale ? mul_add(before, broadcast(rescale[r]), more) : add(before, more);
  };
  Vec sum[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[r][c] = values.packed ? zero() : scaled_before(r, c, zero());
  const char* row = values.first;
  constexpr bool kTwoRows = kDtype == Dtype::int8 && kPairs;
  constexpr int64_t kBytes = C * kLanes * bytes_of(kDtype) * (kTwoRows ? 2 : 1);
  // What is read in place, and packed values are float32 in whole tiles, is asked for a strip ahead, in the order in
  // which it lies: tiles of columns share the next strip among them. One row over all columns leaves it to the CPU.
  const bool in_one_piece = values.stride_bytes == width * bytes_of(kDtype) * (kTwoRows ? 2 : 1);
  const bool all_columns = width <= C * kLanes;
  const bool asks = kDtype != Dtype::float32 || R * C < kValueRows * kValueVectors;
  const int64_t distance = all_columns ? kValueStripBytes : keys * values.stride_bytes;
  const char* ahead = (kTwoRows ? values.rows[0] : row) + distance +
                      (in_one_piece ? first / (C * kLanes) * keys * kBytes : first * bytes_of(kDtype));
  const int64_t ahead_step = in_one_piece ? kBytes : values.stride_bytes;
  for (int64_t key = 0; key < keys; ++key, row += values.stride_bytes, ahead += ahead_step) {
    Vec value[C];
    if constexpr (kTwoRows) {
      int8_pairs_of_rows<C>(values.rows[2 * key] + first, values.rows[2 * key + 1] + first, value);
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) value[c] = load_as<kDtype>(row, first + c * kLanes);
    }
    for (int64_t byte = 0; asks && byte < kBytes; byte += kLineBytes) prefetch(ahead + byte);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec weight = broadcast(weights[r * kBlockKeys + key]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c)
        sum[r][c] = kPairs ? dot_pairs(weight, value[c], sum[r][c]) : mul_add(weight, value[c], sum[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
      store(outputs + r * width + c * kLanes, values.packed ? scaled_before(r, c, sum[r][c]) : sum[r][c]);
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

template <int R, int C, Dtype kDtype, bool kPairs>
static void add_values_by_tiles(int64_t rows, const float* weights, const Values& values, int64_t keys, int64_t width,
                                const float* rescale, float* outputs) {
  const int64_t row_bytes = width * bytes_of(kDtype) * (kDtype == Dtype::int8 && kPairs ? 2 : 1);
  // Several tiles of columns take values in strips that stay in the first-level cache over them.
  const int64_t strip = rows <= R && width > C * kLanes ? clamp(kValueStripBytes / row_bytes, 8, keys) : keys;
  for (int64_t key = 0; key < keys; key += strip) {
    const Values here{values.first + key * values.stride_bytes, values.stride_bytes, values.dtype,
                      values.rows + (values.rows ? 2 * key : 0), values.packed};
    const int64_t count = keys - key < strip ? keys - key : strip;
    for (int64_t r = 0; r < rows; r += R)
      for (int64_t d = 0; d < width; d += C * kLanes)
        value_rows<R, C, kDtype, kPairs>(rows - r, (width - d) / kLanes, weights + r * kBlockKeys + key, here, d, count,
                                         width, key || !rescale ? nullptr : rescale + r, outputs + r * width + d);
  }
}

template <Dtype kDtype, bool kPairs>
static void add_values(int64_t rows, const float* weights, const Values& values, int64_t keys, int64_t width,
                       const float* rescale, float* outputs) {
  const auto add = rows <= kFewRows ? add_values_by_tiles<kFewRows, 2 * kValueVectors, kDtype, kPairs>
                                    : add_values_by_tiles<kValueRows, kValueVectors, kDtype, kPairs>;
  add(rows, weights, values, keys, width, rescale, outputs);
}

static void add_values(int64_t rows, const float* weights, const Values& values, int64_t keys, int64_t width,
                       const float* rescale, float* outputs) {
  const auto add = values.dtype == Dtype::float32    ? add_values<Dtype::float32, false>
                   : values.dtype == Dtype::bfloat16 ? add_values<Dtype::bfloat16, false>
                   : values.dtype == Dtype::int8     ? add_values<Dtype::int8, false>
                                                     : add_values<Dtype::float16, false>;
  add(rows, weights, values, keys, width, rescale, outputs);
}

// Whether the values of the keys first .. last - 1 hold neither NaN nor infinity.
static bool all_finite(const Problem& problem, const Task& task, int64_t first, int64_t last) {
  Vec poison = zero();  // 0 x NaN and 0 x inf are NaN
  each_stretch(problem, task, &Chunk::value, first, last, [&](const Stretch& values, int64_t) {
    const char* row = values.row;
    for (int64_t key = 0; key < values.count; ++key, row += values.stride_bytes)
      for (int64_t d = 0; d < problem.value_dim; d += kLanes)
        poison = mul_add(load_elements(row, problem.stored, d, problem.value_dim - d), zero(), poison);
  });
  return sum(poison) == 0.0f;
}

// As add_values, but a weight of 0 never meets its value: what a mask hides may be NaN or infinite.
static void add_values_around_poison(int64_t rows, const float* weights, const Values& values, int64_t keys,
                                     int64_t value_dim, int64_t width, const float* rescale, float* outputs) {
  for (int64_t r = 0; r < rows; ++r, weights += kBlockKeys, outputs += width) {
    for (int64_t d = 0; rescale && d < value_dim; ++d) outputs[d] *= rescale[r];
    for (int64_t key = 0; key < keys; ++key) {
      if (weights[key] == 0.0f) continue;
      const char* row = values.first + key * values.stride_bytes;
      for (int64_t d = 0; d < value_dim; ++d) outputs[d] += weights[key] * element(row, values.dtype, d);
    }
  }
}
