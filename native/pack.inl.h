// Rows of any float type and stride become panels, of float32 or of bfloat16 pairs, in the layout the tiles read.
// Included by attend.inl.h only.

static inline float widen(uint16_t bits, bool half) {
  uint32_t wide;
  if (!half) {
    wide = uint32_t(bits) << 16;
  } else {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31) {
      wide = sign | 0x7f800000u | (fraction << 13);
    } else if (exponent) {
      wide = sign | ((exponent + 112) << 23) | (fraction << 13);
    } else {  // zero and subnormal numbers: fraction x 2^-24
      const float value = float(fraction) * 0x1p-24f;
      __builtin_memcpy(&wide, &value, 4);
      wide |= sign;
    }
  }
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}

// To nearest, ties to even.
static inline uint16_t narrow(float value, bool half) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t size = bits & 0x7fffffffu;
  if (!half) return uint16_t(size > 0x7f800000u ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  if (size > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds past the largest half
  if (size >= 0x38800000u) return uint16_t(sign | ((size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13));
  float magnitude;
  __builtin_memcpy(&magnitude, &size, 4);
  // Subnormal: the last bit of 0.5 as a float is 2^-24, that of a subnormal half: adding 0.5 rounds where it should.
  magnitude += 0.5f;
  __builtin_memcpy(&bits, &magnitude, 4);
  return uint16_t(sign | (bits - 0x3f000000u));
}

static inline float element(const void* data, Dtype dtype, int64_t index) {
  if (dtype == Dtype::float32) return static_cast<const float*>(data)[index];
  if (dtype == Dtype::int8) return float(static_cast<const int8_t*>(data)[index]);
  return widen(static_cast<const uint16_t*>(data)[index], dtype == Dtype::float16);
}

static inline const char* row_of(const Tensor& tensor, Dtype dtype, int64_t item, int64_t head, int64_t token) {
  const int64_t offset = item * tensor.stride[0] + head * tensor.stride[1] + token * tensor.stride[2];
  return static_cast<const char*>(tensor.data) + offset * bytes_of(dtype);
}

// Keys or values of one head where the user has them, as far as they lie in one piece.
struct Stretch {
  const char* row;  // of the first key
  int64_t stride_bytes;
  const float* scales;  // null where there are none
  int64_t count;
};

// From key `first` on, `last` and later ones left out.
static Stretch stretch_of(const Problem& problem, const Task& task, Tensor Chunk::*side, int64_t first, int64_t last) {
  int64_t low = 0, high = problem.chunk_count - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (problem.chunks[middle].first_key <= first)
      low = middle;
    else
      high = middle - 1;
  }
  const Chunk& chunk = problem.chunks[low];
  const Tensor& tensor = chunk.*side;
  const Scales& scales = side == &Chunk::key ? chunk.key_scale : chunk.value_scale;
  const int64_t token = first - chunk.first_key, end = chunk.first_key + chunk.keys;
  return {row_of(tensor, problem.stored, task.item, task.key_head, token),
          tensor.stride[2] * bytes_of(problem.stored),
          scales.data ? scales.data + task.item * scales.stride[0] + task.key_head * scales.stride[1] + token : nullptr,
          (last < end ? last : end) - first};
}

// Calls work(stretch, its first key) for the keys first .. last - 1.
template <typename Work>
static inline void each_stretch(const Problem& problem, const Task& task, Tensor Chunk::*side, int64_t first,
                                int64_t last, Work work) {
  while (first < last) {
    const Stretch stretch = stretch_of(problem, task, side, first, last);
    work(stretch, first);
    first += stretch.count;
  }
}

// Where the rows of the keys first .. last - 1 begin.
static void rows_of(const Problem& problem, const Task& task, Tensor Chunk::*side, int64_t first, int64_t last,
                    const char** rows) {
  each_stretch(problem, task, side, first, last, [&](const Stretch& stretch, int64_t) {
    for (int64_t i = 0; i < stretch.count; ++i) *rows++ = stretch.row + i * stretch.stride_bytes;
  });
}

// to[rows][kBlockKeys] = from x scales, for `count` keys.
static void times_scales(int64_t rows, const float* from, const float* scales, int64_t count, float* to) {
  for (int64_t r = 0; r < rows; ++r, from += kBlockKeys, to += kBlockKeys) {
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) store(to + j, mul(load(from + j), load(scales + j)));
    for (; j < count; ++j) to[j] = from[j] * scales[j];
  }
}

template <Dtype kDtype>
static inline Vec load_as(const char* row, int64_t index) {
  if constexpr (kDtype == Dtype::float32) return load(reinterpret_cast<const float*>(row) + index);
  if constexpr (kDtype == Dtype::int8) return load_int8(reinterpret_cast<const int8_t*>(row) + index);
  const uint16_t* source = reinterpret_cast<const uint16_t*>(row) + index;
  return kDtype == Dtype::bfloat16 ? load_bfloat16(source) : load_float16(source);
}

// Up to kLanes elements from `index` on as float32, zeros behind the last.
static inline Vec load_elements(const char* row, Dtype dtype, int64_t index, int64_t count) {
  if (dtype == Dtype::float32) {
    const float* source = reinterpret_cast<const float*>(row) + index;
    return count >= kLanes ? load(source) : load_n(source, int(count));
  }
  if (dtype == Dtype::int8) {
    const int8_t* source = reinterpret_cast<const int8_t*>(row) + index;
    int8_t line[kLanes];
    if (count >= kLanes) return load_int8(source);
    __builtin_memset(line, 0, sizeof line);
    __builtin_memcpy(line, source, std::size_t(count));
    return load_int8(line);
  }
  const uint16_t* source = reinterpret_cast<const uint16_t*>(row) + index;
  uint16_t line[kLanes];
  if (count < kLanes) {
    __builtin_memset(line, 0, sizeof line);
    __builtin_memcpy(line, source, std::size_t(count) * 2);
    source = line;
  }
  return dtype == Dtype::bfloat16 ? load_bfloat16(source) : load_float16(source);
}

// Up to 2 kLanes bfloat16 or int8 elements as kLanes pairs of bfloat16, zeros behind the last; this is exact.
static inline Vec load_pairs(const char* row, Dtype dtype, int64_t index, int64_t count) {
  if (dtype == Dtype::int8) {
    Vec pairs[2];
    int8_pairs(reinterpret_cast<const int8_t*>(row) + index, clamp(count, 0, 2 * kLanes), pairs);
    return pairs[0];
  }
  const uint16_t* source = reinterpret_cast<const uint16_t*>(row) + index;
  uint16_t line[2 * kLanes];
  if (count < 2 * kLanes) {
    __builtin_memset(line, 0, sizeof line);
    __builtin_memcpy(line, source, std::size_t(count) * 2);
    source = line;
  }
  return load(reinterpret_cast<const float*>(source));
}

static constexpr int64_t kPanelKeys = 2 * kLanes;

// Whatever is stored under bfloat16 queries, bfloat16 or int8, is exact in bfloat16.
static inline bool uses_pairs(const Problem& problem) { return kHasBf16Dot && problem.dtype == Dtype::bfloat16; }

template <int N>
using Count = std::integral_constant<int, N>;

template <Dtype kDtype, bool kPairs>
struct Stored {
  static constexpr Dtype dtype = kDtype;
  static constexpr bool pairs = kPairs;
};

// Calls work(Stored) for what is known while the program runs.
template <typename Work>
static inline void as_stored(Dtype dtype, bool pairs, Work work) {
  if (dtype == Dtype::int8) return pairs ? work(Stored<Dtype::int8, kHasBf16Dot>{}) : work(Stored<Dtype::int8, false>{});
  if (dtype == Dtype::float32) return work(Stored<Dtype::float32, false>{});
  if (dtype == Dtype::float16) return work(Stored<Dtype::float16, false>{});
  return pairs ? work(Stored<Dtype::bfloat16, kHasBf16Dot>{}) : work(Stored<Dtype::bfloat16, false>{});
}

// Lanes per key in a packed panel: head_dim floats, or half as many pairs of bfloat16.
static inline int64_t key_depth(const Problem& problem, bool pairs) {
  return pairs ? (problem.head_dim + 1) / 2 : problem.head_dim;
}

// kLanes rows from lane `d` on become lanes: tile[i] is lane d + i of the rows. Rows from `known` on are zeros.
template <Dtype kDtype, bool kPairs>
static inline void load_transposed(const char* const* rows, int64_t known, int64_t d, int64_t left, Vec* tile) {
  const auto load_whole = [&](auto count) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      tile[i] = i >= count ? zero() : kPairs ? load_pairs(rows[i], kDtype, 2 * d, left) : load_as<kDtype>(rows[i], d);
  };
  const bool whole = left >= (kPairs ? 2 : 1) * kLanes;
  if (whole && known >= kLanes) {
    load_whole(Count<kLanes>{});
  } else if (whole && known == kTileRows) {
    load_whole(Count<kTileRows>{});
  } else {
    for (int i = 0; i < kLanes; ++i)
      tile[i] = i >= known ? zero()
                : kPairs   ? load_pairs(rows[i], kDtype, 2 * d, left)
                           : load_elements(rows[i], kDtype, d, left);
  }
  transpose(tile);
}

// Keys first .. last - 1 as panels [depth][kPanelKeys], keys behind the last as zeros; a half without keys stays as it is.
template <Dtype kDtype, bool kPairs>
static void pack_keys(const Problem& problem, const Task& task, int64_t first, int64_t last, float* panels) {
  const int64_t depth = key_depth(problem, kPairs), step = kPairs ? 2 : 1;
  for (int64_t panel = first; panel < last; panel += kPanelKeys, panels += depth * kPanelKeys) {
    for (int64_t half = 0; half < kPanelKeys && panel + half < last; half += kLanes) {
      const int64_t begin = panel + half, known = clamp(last - begin, 0, kLanes);
      const char* rows[kLanes];
      rows_of(problem, task, &Chunk::key, begin, begin + known, rows);
      const int64_t next_bytes = kLanes * stretch_of(problem, task, &Chunk::key, begin, begin + known).stride_bytes;
      float* place = panels + half;
      for (int64_t d = 0; d < depth; d += kLanes, place += kLanes * kPanelKeys) {
        // The next keys are on their way while these are turned.
        for (int i = 0; i < known; ++i) __builtin_prefetch(rows[i] + next_bytes + d * step * bytes_of(kDtype));
        Vec tile[kLanes];
        load_transposed<kDtype, kPairs>(rows, known, d, problem.head_dim - d * step, tile);
        if (depth - d >= kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) store(place + i * kPanelKeys, tile[i]);
        } else {
          for (int64_t i = 0; i < depth - d; ++i) store(place + i * kPanelKeys, tile[i]);
        }
      }
    }
  }
}

static void pack_keys(const Problem& problem, const Task& task, int64_t first, int64_t last, bool pairs, float* panels) {
  as_stored(problem.stored, pairs, [&](auto stored) {
    pack_keys<stored.dtype, stored.pairs>(problem, task, first, last, panels);
  });
}

// Rows of values, packed or where the user has them: at even steps, or, where int8 is taken in pairs, one by one.
struct Values {
  const char* first;
  int64_t stride_bytes;
  Dtype dtype;
  const char* const* rows = nullptr;
  bool packed = false;
};

// Up to kLanes elements as bfloat16, zeros behind the last; `line` is room for twice as many.
static inline const uint16_t* narrow_elements(const char* row, Dtype dtype, int64_t index, int64_t count,
                                              uint16_t* line) {
  if (dtype == Dtype::bfloat16 && count >= kLanes) return reinterpret_cast<const uint16_t*>(row) + index;
  store(reinterpret_cast<float*>(line), count > 0 ? load_pairs(row, dtype, index, clamp(count, 0, kLanes)) : zero());
  return line;
}

// Values of the keys first .. last - 1 of a block as rows of value_width floats, or, in pairs, the values of two keys as
// one row of pairs of bfloat16. Keys before `known` are zeros, and so is one behind the last.
static void pack_values(const Problem& problem, const Task& task, int64_t first, int64_t known, int64_t last,
                        bool pairs, float* packed) {
  const int64_t width = problem.value_width(), value_dim = problem.value_dim;
  const char* rows[kBlockKeys];
  rows_of(problem, task, &Chunk::value, known, last, rows);
  const auto row_of_key = [&](int64_t key) { return key < known || key >= last ? nullptr : rows[key - known]; };
  for (int64_t key = first; key < last; key += pairs ? 2 : 1, packed += width) {
    const char *row = row_of_key(key), *next = pairs ? row_of_key(key + 1) : nullptr;
    for (int64_t d = 0; d < width; d += kLanes) {
      const int64_t left = value_dim - d;
      if (pairs) {
        uint16_t lines[2][2 * kLanes];
        store(packed + d, interleave(narrow_elements(row, problem.stored, d, row ? left : 0, lines[0]),
                                     narrow_elements(next, problem.stored, d, next ? left : 0, lines[1])));
      } else {
        store(packed + d, row && left > 0 ? load_elements(row, problem.stored, d, left) : zero());
      }
    }
  }
}

// Up to this many rows at a time are scored against the keys in place: of a task that has no more, or so few keys that
// turning them into a panel would take longer.
static constexpr int64_t kRowsInPlace = 4;

static inline bool scores_in_place(const Task& task) {
  const bool few_keys = task.rows() <= kTileRows && task.last_key - task.first_key <= kLanes;
  return !task.packed && (task.rows() <= kRowsInPlace || few_keys);
}

// The task's rows, as floats or as pairs of bfloat16: panels [depth][rows of a tile], or, for keys in place, one row
// after the other, each padded with zeros to whole vectors. Less than kLanes numbers behind the last are overwritten.
template <Dtype kDtype, bool kPairs>
static void pack_queries(const Problem& problem, const Task& task, bool row_by_row, float* packed) {
  const int64_t depth = key_depth(problem, kPairs), group = problem.group();
  const int64_t step = row_by_row ? 1 : kTileRows;
  for (int64_t first = 0; first < task.rows(); first += step) {
    const int64_t rows = task.rows() - first < step ? task.rows() - first : step;
    const char* row[kTileRows];
    for (int64_t r = 0; r < rows; ++r) {
      row[r] = row_of(problem.query, kDtype, task.item, task.query_head(first + r, group), task.token(first + r, group));
      // All of a tile's rows are on their way before the first is turned.
      for (int64_t byte = 0; byte < problem.head_dim * bytes_of(kDtype); byte += kLineBytes)
        __builtin_prefetch(row[r] + byte);
    }
    for (int64_t d = 0; d < depth; d += kLanes) {
      const int64_t left = problem.head_dim - (kPairs ? 2 : 1) * d;
      if (row_by_row) {
        store(packed, kPairs ? load_pairs(row[0], kDtype, 2 * d, left) : load_elements(row[0], kDtype, d, left));
        packed += kLanes;
        continue;
      }
      Vec tile[kLanes];
      load_transposed<kDtype, kPairs>(row, rows, d, left, tile);
      const int64_t count = depth - d < kLanes ? depth - d : kLanes;
      for (int64_t i = 0; i < count; ++i, packed += rows) store(packed, tile[i]);
    }
  }
}

static void pack_queries(const Problem& problem, const Task& task, bool pairs, bool row_by_row, float* packed) {
  as_stored(problem.dtype, pairs, [&](auto stored) {
    pack_queries<stored.dtype, stored.pairs>(problem, task, row_by_row, packed);
  });
}
