// Register tiles of values: weights . values for a few rows and columns.
//
// Inputs: weights [rows][kBlockKeys] in float32 or pairs of bfloat16; values packed, or where the
// caller has them. Output: weighted sums [rows][width], rescaled and added to. Accumulators:
// float32 in registers. Packed values come a block at a time and have sums of their own, because
// rounding errors grow with the length of a chain; in place, where chunks may end anywhere, the
// chain goes on, so that the bits do not depend on chunks. Tail rule: columns come in whole
// vectors; an odd key completes its pair with a weight of 0.
#pragma once

#include <cstdint>

#include "elements.h"
#include "simd.h"

namespace keywise::KEYWISE_TARGET {

// Rows of values: at equal distances, or, where int8 is taken in pairs of keys, by their addresses.
struct ValueRows {
  const char* first_row = nullptr;
  int64_t stride_bytes = 0;
  Dtype dtype = Dtype::float32;
  const char* const* addresses = nullptr;
  bool packed = false;
};

// Returns the address of a row's factor, null where rows have none.
KEYWISE_INLINE const float* row_rescale(const float* rescale, int row) {
  return rescale ? rescale + row : nullptr;
}

// Returns output x rescale + more; a null rescale is 1.
KEYWISE_INLINE Vec add_to_output(const float* output, const float* rescale, Vec more) {
  const Vec before = load(output);
  return rescale ? mul_add(before, broadcast(*rescale), more) : add(before, more);
}

// Computes outputs[R][C kLanes] = outputs x rescale[R] + weights[R][keys] . values[keys][C kLanes],
// from a column on. Of pairs of bfloat16, weights and values, a lane counts as one key.
template <int R, int C, Dtype kDtype, bool kPairs>
static void add_value_tile(const float* weights, const ValueRows& values, int64_t column,
                           int64_t keys, int64_t width, const float* rescale, float* outputs) {
  Vec sums[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
      sums[r][c] = values.packed ? zero()
                                 : add_to_output(outputs + r * width + c * kLanes,
                                                 row_rescale(rescale, r), zero());
  const char* row = values.first_row;
  constexpr bool kTwoRows = kDtype == Dtype::int8 && kPairs;
  constexpr int64_t kTileBytes = C * kLanes * bytes_of(kDtype) * (kTwoRows ? 2 : 1);
  // Values in place, and packed values unless they are float32 in whole tiles, are prefetched in
  // the order of their addresses: tiles of columns share what comes next among them. One row over
  // all columns leaves it to the CPU.
  const bool is_contiguous = values.stride_bytes == width * bytes_of(kDtype) * (kTwoRows ? 2 : 1);
  const bool all_columns = width <= C * kLanes;
  constexpr bool kPrefetches = kDtype != Dtype::float32 || R * C < kValueRows * kValueVectors;
  const int64_t distance_bytes = all_columns ? kValueCacheBytes : keys * values.stride_bytes;
  const int64_t column_offset =
      is_contiguous ? column / (C * kLanes) * keys * kTileBytes : column * bytes_of(kDtype);
  const char* next = (kTwoRows ? values.addresses[0] : row) + distance_bytes + column_offset;
  const int64_t next_step_bytes = is_contiguous ? kTileBytes : values.stride_bytes;
  for (int64_t key = 0; key < keys; ++key, row += values.stride_bytes, next += next_step_bytes) {
    Vec value[C];
    if constexpr (kTwoRows) {
      load_int8_pairs_of_rows<C>(values.addresses[2 * key] + column,
                                 values.addresses[2 * key + 1] + column, value);
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) value[c] = load_as<kDtype>(row, column + c * kLanes);
    }
    for (int64_t byte = 0; kPrefetches && byte < kTileBytes; byte += kCacheLineBytes)
      prefetch(next + byte);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec weight = broadcast(weights[r * kBlockKeys + key]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c)
        sums[r][c] = kPairs ? dot_pairs(weight, value[c], sums[r][c])
                            : mul_add(weight, value[c], sums[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      float* output = outputs + r * width + c * kLanes;
      store(output, values.packed ? add_to_output(output, row_rescale(rescale, r), sums[r][c])
                                  : sums[r][c]);
    }
}

// Calls the tile for the number of rows and columns, at most R and C vectors.
template <int R, int C, Dtype kDtype, bool kPairs>
static void add_value_rows(int64_t row_count, int64_t vectors, const float* weights,
                           const ValueRows& values, int64_t column, int64_t keys, int64_t width,
                           const float* rescale, float* outputs) {
  if constexpr (R > 1) {
    if (row_count < R)
      return add_value_rows<R - 1, C, kDtype, kPairs>(row_count, vectors, weights, values, column,
                                                      keys, width, rescale, outputs);
  }
  if constexpr (C > 1) {
    if (vectors < C)
      return add_value_rows<R, C - 1, kDtype, kPairs>(row_count, vectors, weights, values, column,
                                                      keys, width, rescale, outputs);
  }
  add_value_tile<R, C, kDtype, kPairs>(weights, values, column, keys, width, rescale, outputs);
}

// Adds weights . values to all columns of the outputs, in tiles of R rows and C vectors.
template <int R, int C, Dtype kDtype, bool kPairs>
static void add_values_in_tiles(int64_t row_count, const float* weights, const ValueRows& values,
                                int64_t keys, int64_t width, const float* rescale, float* outputs) {
  const int64_t row_bytes = width * bytes_of(kDtype) * (kDtype == Dtype::int8 && kPairs ? 2 : 1);
  // Several tiles of columns take few enough keys at a time that their values stay in the
  // first-level cache.
  const bool reuses_values = row_count <= R && width > C * kLanes;
  const int64_t step =
      reuses_values ? clamp(kValueCacheBytes / row_bytes, kMinValueCacheKeys, keys) : keys;
  for (int64_t key = 0; key < keys; key += step) {
    ValueRows step_values = values;
    step_values.first_row += key * values.stride_bytes;
    if (values.addresses) step_values.addresses += 2 * key;
    const int64_t count = min(step, keys - key);
    for (int64_t r = 0; r < row_count; r += R)
      for (int64_t column = 0; column < width; column += C * kLanes)
        add_value_rows<R, C, kDtype, kPairs>(row_count - r, (width - column) / kLanes,
                                             weights + r * kBlockKeys + key, step_values, column,
                                             count, width, key || !rescale ? nullptr : rescale + r,
                                             outputs + r * width + column);
  }
}

template <Dtype kDtype, bool kPairs>
static void add_values_as(int64_t row_count, const float* weights, const ValueRows& values,
                          int64_t keys, int64_t width, const float* rescale, float* outputs) {
  const auto add_in_tiles =
      row_count <= kMaxWideRows
          ? add_values_in_tiles<kMaxWideRows, 2 * kValueVectors, kDtype, kPairs>
          : add_values_in_tiles<kValueRows, kValueVectors, kDtype, kPairs>;
  add_in_tiles(row_count, weights, values, keys, width, rescale, outputs);
}

// Adds weights in float32 . values of any dtype.
static void add_values(int64_t row_count, const float* weights, const ValueRows& values,
                       int64_t keys, int64_t width, const float* rescale, float* outputs) {
  auto add_as = add_values_as<Dtype::float32, false>;
  if (values.dtype == Dtype::bfloat16) add_as = add_values_as<Dtype::bfloat16, false>;
  if (values.dtype == Dtype::float16) add_as = add_values_as<Dtype::float16, false>;
  if (values.dtype == Dtype::int8) add_as = add_values_as<Dtype::int8, false>;
  add_as(row_count, weights, values, keys, width, rescale, outputs);
}

}  // namespace keywise::KEYWISE_TARGET
