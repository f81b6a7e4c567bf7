// Register tiles of scores: query . key for a few rows and keys.
//
// Inputs: packed query rows; keys in panels, or where the caller has them. Output: scores
// [rows][kBlockKeys], unscaled. Accumulators: float32 in registers. Chains of products in a panel
// tile are at most kMaxChainProducts long. Tail rule: panels are padded with zeros; in place,
// scores behind the last key are not written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "chunk_rows.h"
#include "elements.h"
#include "simd.h"

namespace keywise::KEYWISE_TARGET {

// Addresses to prefetch during a tile, one per step of its depth.
struct PrefetchStream {
  const char* place = nullptr;
  int64_t step_bytes = 0;
};

// Computes scores[R][kBlockKeys] = queries[depth][R] . the first V vectors of
// panel[depth][kPanelKeys].
template <int R, int V, bool kPairs>
static void compute_score_tile(const float* queries, const float* panel, int64_t depth,
                               PrefetchStream stream, float* scores) {
  constexpr int64_t kMaxChain = kPairs ? kMaxChainPairs : kMaxChainProducts;
  Vec sums[R][V];
  for (int64_t done = 0; done < depth; done += kMaxChain) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[r][v] = zero();
    const int64_t chain = min(kMaxChain, depth - done);
    for (int64_t d = 0; d < chain;
         ++d, queries += R, panel += kPanelKeys, stream.place += stream.step_bytes) {
      prefetch(stream.place);
      Vec keys[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) keys[v] = load(panel + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec query = broadcast(queries[r]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
          sums[r][v] =
              kPairs ? dot_pairs(query, keys[v], sums[r][v]) : mul_add(query, keys[v], sums[r][v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        float* place = scores + r * kBlockKeys + v * kLanes;
        store(place, done ? add(load(place), sums[r][v]) : sums[r][v]);
      }
  }
}

// Calls the tile for the number of rows, at most R.
template <int R, int V, bool kPairs>
static void compute_score_rows(int64_t row_count, const float* queries, const float* panel,
                               int64_t depth, PrefetchStream stream, float* scores) {
  if constexpr (R > 1) {
    if (row_count < R)
      return compute_score_rows<R - 1, V, kPairs>(row_count, queries, panel, depth, stream, scores);
  }
  compute_score_tile<R, V, kPairs>(queries, panel, depth, stream, scores);
}

// Stores `count` scores and leaves those behind them alone.
static inline void store_scores(Vec values, int64_t count, float* scores) {
  if (count >= kLanes) return store(scores, values);
  float lanes[kLanes];
  store(lanes, values);
  __builtin_memcpy(scores, lanes, std::size_t(count) * sizeof(float));
}

KEYWISE_INLINE void prefetch_keys(const char* key, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += kCacheLineBytes)
    prefetch(key + kKeyPrefetchBytes + byte);
}

// Adds the products of one vector of elements of each key to the sums of R rows.
template <int R, bool kPairs>
KEYWISE_INLINE void add_key_products(const float* queries, int64_t query_stride,
                                     const Vec* elements, Vec (*sums)[kPairwiseVectors]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec query = load(queries + r * query_stride);
#pragma GCC unroll 16
    for (int k = 0; k < kPairwiseVectors; ++k)
      sums[r][k] = kPairs ? dot_pairs(query, elements[k], sums[r][k])
                          : mul_add(query, elements[k], sums[r][k]);
  }
}

template <Dtype kDtype, bool kPairs>
KEYWISE_INLINE Vec load_key(const char* key, int64_t d) {
  return kPairs ? load(reinterpret_cast<const float*>(key) + d) : load_as<kDtype>(key, d);
}

// Computes the scores of R rows against kPairwiseVectors keys, in partial sums per key.
template <int R, Dtype kDtype, bool kPairs>
KEYWISE_INLINE void sum_key_products(int64_t head_dim, const char* const* keys, bool prefetches,
                                     const float* queries, int64_t query_stride,
                                     Vec (*sums)[kPairwiseVectors]) {
  constexpr int64_t kStep = kPairs ? 2 : 1;
  constexpr int64_t kLaneBytes = kStep * bytes_of(kDtype);
  if constexpr (kPairs && kDtype == Dtype::int8) {
    const int64_t depth = ceil_div(head_dim, kStep);
    for (int64_t d = 0; d < depth; d += 2 * kLanes) {
      if (prefetches)
        prefetch_keys(keys[0] + d * kPairwiseVectors * kLaneBytes,
                      2 * kPairwiseVectors * kLanes * kLaneBytes);
      Vec elements[2][kPairwiseVectors];
#pragma GCC unroll 16
      for (int k = 0; k < kPairwiseVectors; ++k) {
        Vec pairs[2];
        load_int8_pairs(reinterpret_cast<const int8_t*>(keys[k]) + 2 * d, head_dim - 2 * d, pairs);
        elements[0][k] = pairs[0];
        elements[1][k] = pairs[1];
      }
      add_key_products<R, kPairs>(queries + d, query_stride, elements[0], sums);
      if (d + kLanes < depth)
        add_key_products<R, kPairs>(queries + d + kLanes, query_stride, elements[1], sums);
    }
  } else {
    const int64_t full_lanes = round_down(head_dim / kStep, kLanes);
    Vec elements[kPairwiseVectors];
    const bool one_by_one = R == 1 && full_lanes * kLaneBytes >= kSequentialKeyBytes;
    // All at once: a branch in the loop over elements would keep the compiler from unrolling it.
    if (!one_by_one && prefetches)
      prefetch_keys(keys[0], kPairwiseVectors * full_lanes * kLaneBytes);
    if (one_by_one) {
#pragma GCC unroll 16
      for (int k = 0; k < kPairwiseVectors; ++k) {
        // Expected, so that the loop over a key's elements is entered without a jump.
        if (__builtin_expect(prefetches, true)) prefetch_keys(keys[k], full_lanes * kLaneBytes);
        for (int64_t d = 0; d < full_lanes; d += kLanes) {
          const Vec query = load(queries + d);
          const Vec element = load_key<kDtype, kPairs>(keys[k], d);
          sums[0][k] =
              kPairs ? dot_pairs(query, element, sums[0][k]) : mul_add(query, element, sums[0][k]);
        }
      }
    } else {
      // Few rows have little work per step of the loop.
#pragma GCC unroll 4
      for (int64_t d = 0; d < full_lanes; d += kLanes) {
#pragma GCC unroll 16
        for (int k = 0; k < kPairwiseVectors; ++k)
          elements[k] = load_key<kDtype, kPairs>(keys[k], d);
        add_key_products<R, kPairs>(queries + d, query_stride, elements, sums);
      }
    }
    const int64_t left = head_dim - kStep * full_lanes;
    if (left > 0) {
#pragma GCC unroll 16
      for (int k = 0; k < kPairwiseVectors; ++k)
        elements[k] = kPairs ? load_pairs(keys[k], kDtype, kStep * full_lanes, left)
                             : load_elements(keys[k], kDtype, full_lanes, left);
      add_key_products<R, kPairs>(queries + full_lanes, query_stride, elements, sums);
    }
  }
}

// Computes the scores of R rows against `count` keys in place, kLanes keys at a time. A key is
// loaded once for all rows, in the order of its addresses.
template <int R, Dtype kDtype, bool kPairs>
static void score_in_place(const Problem& problem, const char* key, int64_t stride_bytes,
                           const float* queries, int64_t count, float* scores) {
  // A copy, because stores of scores may alias the problem.
  const int64_t head_dim = problem.head_dim;
  const int64_t query_stride = round_up(key_depth(problem, kPairs), kLanes);
  const bool prefetches = stride_bytes == head_dim * bytes_of(kDtype) &&
                          problem.keys * stride_bytes > kMinPrefetchedBytes;
  for (int64_t j = 0; j < count; j += kLanes) {
    Vec partial_sums[R][kLanes / kPairwiseVectors];
    for (int i = 0; i < kLanes; i += kPairwiseVectors) {
      if (j + i >= count) {
        for (int r = 0; r < R; ++r) partial_sums[r][i / kPairwiseVectors] = zero();
        continue;
      }
      const char* keys[kPairwiseVectors];
      // The last key stands in for those behind it, whose scores are not stored.
      keys[0] = key + (j + i) * stride_bytes;
#pragma GCC unroll 16
      for (int k = 1; k < kPairwiseVectors; ++k)
        keys[k] = keys[k - 1] + (j + i + k < count ? stride_bytes : 0);
      Vec sums[R][kPairwiseVectors];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int k = 0; k < kPairwiseVectors; ++k) sums[r][k] = zero();
      sum_key_products<R, kDtype, kPairs>(head_dim, keys, prefetches, queries, query_stride, sums);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) partial_sums[r][i / kPairwiseVectors] = pairwise_add(sums[r]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      store_scores(combine_pairwise(partial_sums[r]), count - j, scores + r * kBlockKeys + j);
  }
}

// The same for int8 keys in pairs whose head_dim is a multiple of kInt8StepBytes: a vector holds a
// step of each of kPairwiseVectors keys instead of one key, so its sums need a quarter of the
// pairwise additions.
template <int R>
static void score_int8_steps_in_place(const Problem& problem, const char* key, int64_t stride_bytes,
                                      const float* queries, int64_t count, float* scores) {
  const int64_t query_stride = round_up(key_depth(problem, true), kLanes);
  for (int64_t j = 0; j < count; j += kLanes) {
    const char* keys[kLanes];
    for (int k = 0; k < kLanes; ++k) keys[k] = key + min(j + k, count - 1) * stride_bytes;
    Vec sums[R][kPairwiseVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int k = 0; k < kPairwiseVectors; ++k) sums[r][k] = zero();
    for (int64_t byte = 0; byte < problem.head_dim; byte += kInt8StepBytes) {
      if (stride_bytes == problem.head_dim)
        prefetch_keys(keys[0] + byte * kLanes, kInt8StepBytes * kLanes);
      Vec elements[kPairwiseVectors][2];
#pragma GCC unroll 16
      for (int k = 0; k < kPairwiseVectors; ++k)
        load_int8_pairs_of_keys(keys + k, byte, elements[k]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec query =
              load_repeated(queries + r * query_stride + byte / 2 + half * kInt8StepBytes / 4);
#pragma GCC unroll 16
          for (int k = 0; k < kPairwiseVectors; ++k)
            sums[r][k] = dot_pairs(query, elements[k][half], sums[r][k]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      store_scores(pairwise_add(sums[r]), count - j, scores + r * kBlockKeys + j);
  }
}

// Calls the function for the number of rows, at most R.
template <int R, Dtype kDtype, bool kPairs>
static void score_rows_in_place(int64_t row_count, const Problem& problem, const char* key,
                                int64_t stride_bytes, const float* queries, int64_t count,
                                float* scores) {
  if constexpr (R > 1) {
    if (row_count < R) {
      return score_rows_in_place<R - 1, kDtype, kPairs>(row_count, problem, key, stride_bytes,
                                                        queries, count, scores);
    }
  }
  if constexpr (kPairs && kDtype == Dtype::int8) {
    if (problem.head_dim % kInt8StepBytes == 0)
      return score_int8_steps_in_place<R>(problem, key, stride_bytes, queries, count, scores);
  }
  score_in_place<R, kDtype, kPairs>(problem, key, stride_bytes, queries, count, scores);
}

// Computes the scores of up to kMaxRowsInPlace rows against keys of one chunk.
static void score_rows_in_place(int64_t row_count, const Problem& problem, const ChunkRows& keys,
                                bool pairs, const float* queries, float* scores) {
  static_assert(kMaxRowsInPlace <= kTileRows);
  with_encoding(problem.stored_dtype, pairs, [&](auto encoding) {
    score_rows_in_place<kMaxRowsInPlace, encoding.dtype, encoding.pairs>(
        row_count, problem, keys.first_row, keys.stride_bytes, queries, keys.count, scores);
  });
}

}  // namespace keywise::KEYWISE_TARGET
