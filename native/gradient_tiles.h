// Register tiles of gradients of keys and values: transposed matrices of weights times rows.
//
// Inputs: weights [steps][kBlockKeys], of which a tile takes R neighbouring keys; one row of
// `width` floats per step. Output: sums [R][width] in memory, added to. Accumulators: float32 in
// registers, one chain per query block. Tail rule: columns come in whole vectors.
#pragma once

#include <cstdint>

#include "simd.h"

namespace keywise::KEYWISE_TARGET {

// Computes sums[R][C kLanes] += weights[steps][R] transposed . rows[steps][C kLanes].
template <int R, int C>
static void add_transposed_tile(const float* weights, const float* rows, int64_t steps,
                                int64_t width, float* sums) {
  Vec products[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) products[r][c] = zero();
  for (int64_t step = 0; step < steps; ++step, weights += kBlockKeys, rows += width) {
    Vec row[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) row[c] = load(rows + c * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec weight = broadcast(weights[r]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) products[r][c] = mul_add(weight, row[c], products[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      float* const sum = sums + r * width + c * kLanes;
      store(sum, add(load(sum), products[r][c]));
    }
}

// Calls the tile for the number of keys and columns, at most R and C vectors.
template <int R, int C>
static void add_transposed_rows(int64_t key_count, int64_t vectors, const float* weights,
                                const float* rows, int64_t steps, int64_t width, float* sums) {
  if constexpr (R > 1) {
    if (key_count < R)
      return add_transposed_rows<R - 1, C>(key_count, vectors, weights, rows, steps, width, sums);
  }
  if constexpr (C > 1) {
    if (vectors < C)
      return add_transposed_rows<R, C - 1>(key_count, vectors, weights, rows, steps, width, sums);
  }
  add_transposed_tile<R, C>(weights, rows, steps, width, sums);
}

// Adds weights[steps][key_count] transposed . rows[steps][width] to sums [key_count][width].
static void add_transposed_products(int64_t key_count, const float* weights, const float* rows,
                                    int64_t steps, int64_t width, float* sums) {
  for (int64_t key = 0; key < key_count; key += kValueRows)
    for (int64_t column = 0; column < width; column += kValueVectors * kLanes)
      add_transposed_rows<kValueRows, kValueVectors>(key_count - key, (width - column) / kLanes,
                                                     weights + key, rows + column, steps, width,
                                                     sums + key * width + column);
}

}  // namespace keywise::KEYWISE_TARGET
