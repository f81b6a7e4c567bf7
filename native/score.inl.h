// Scores of a tile of rows, from packed panels of keys or from keys where the user has them. Included by attend.inl.h.

// Into the second-level cache: the first level waits for too few lines at a time to keep the memory busy.
static inline void prefetch(const char* place) { __builtin_prefetch(place, 0, 2); }

// What a tile asks for while it computes, `step` bytes further with every step of its depth.
struct Ahead {
  const char* place;
  int64_t step;
};

// scores[R][kBlockKeys] = queries[depth][R] . the first V vectors of panel[depth][kPanelKeys]; all accumulators stay in
// registers.
template <int R, int V, bool kPairs>
static void score_tile(const float* queries, const float* panel, int64_t depth, Ahead ahead, float* scores) {
  // Long sums are made of short ones: rounding errors grow with the length of a chain.
  constexpr int64_t kChain = kPairs ? 64 : 128;
  Vec sums[R][V];
  for (int64_t done = 0; done < depth; done += kChain) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[r][v] = zero();
    const int64_t chain = depth - done < kChain ? depth - done : kChain;
    for (int64_t d = 0; d < chain; ++d, queries += R, panel += kPanelKeys, ahead.place += ahead.step) {
      prefetch(ahead.place);
      Vec keys[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) keys[v] = load(panel + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec query = broadcast(queries[r]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
          sums[r][v] = kPairs ? dot_pairs(query, keys[v], sums[r][v]) : mul_add(query, keys[v], sums[r][v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        float* here = scores + r * kBlockKeys + v * kLanes;
        store(here, done ? add(load(here), sums[r][v]) : sums[r][v]);
      }
  }
}

template <int R, int V, bool kPairs>
static void score_rows(int64_t rows, const float* queries, const float* panel, int64_t depth, Ahead ahead,
                       float* scores) {
  if constexpr (R > 1) {
    if (rows < R) return score_rows<R - 1, V, kPairs>(rows, queries, panel, depth, ahead, scores);
  }
  score_tile<R, V, kPairs>(queries, panel, depth, ahead, scores);
}

// What lies behind the last score belongs to others.
static inline void store_scores(Vec found, int64_t count, float* scores) {
  if (count >= kLanes) return store(scores, found);
  float line[kLanes];
  store(line, found);
  __builtin_memcpy(scores, line, std::size_t(count) * sizeof(float));
}

// Keys read in place are asked for this many bytes ahead, in the order in which they lie: the CPU loses its way where
// several keys are read at once.
static constexpr int64_t kKeysAheadBytes = 6144;
// One row takes keys of this many bytes one after the other: then the CPU alone is better at it.
static constexpr int64_t kWideBytes = 256;

static inline void prefetch_keys(const char* key, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += kLineBytes) prefetch(key + kKeysAheadBytes + byte);
}

// Scores of R rows, kLanes keys at a time, straight from where the user has them: packing a block of keys pays only
// when many rows use it. A key is loaded once for all rows, in the order it lies in memory.
template <int R, Dtype kDtype, bool kPairs>
static void score_in_place(const Problem& problem, const char* key, int64_t stride_bytes, const float* queries,
                           int64_t count, float* scores) {
  const int64_t step = kPairs ? 2 : 1, depth = key_depth(problem, kPairs), padded = round_up(depth, kLanes);
  const int64_t whole = problem.head_dim / step / kLanes * kLanes, lane_bytes = step * bytes_of(kDtype);
  const bool in_one_piece = stride_bytes == problem.head_dim * bytes_of(kDtype);
  for (int64_t j = 0; j < count; j += kLanes) {
    Vec folded[R][kLanes / kFold];
    for (int i = 0; i < kLanes; i += kFold) {
      if (j + i >= count) {
        for (int r = 0; r < R; ++r) folded[r][i / kFold] = zero();
        continue;
      }
      Vec sums[R][kFold];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int k = 0; k < kFold; ++k) sums[r][k] = zero();
      const auto add_products = [&](const Vec* elements, int64_t d) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec query = load(queries + r * padded + d);
#pragma GCC unroll 16
          for (int k = 0; k < kFold; ++k)
            sums[r][k] = kPairs ? dot_pairs(query, elements[k], sums[r][k]) : mul_add(query, elements[k], sums[r][k]);
        }
      };
      // Behind the last key the last one stands in; its sums are not stored.
      const char* keys[kFold];
      for (int k = 0; k < kFold; ++k) keys[k] = key + (j + i + k < count ? j + i + k : count - 1) * stride_bytes;
      const auto each_key = [&](auto work) {
#pragma GCC unroll 16
        for (int k = 0; k < kFold; ++k) work(k);
      };
      if constexpr (kPairs && kDtype == Dtype::int8) {
        for (int64_t d = 0; d < depth; d += 2 * kLanes) {
          if (in_one_piece) prefetch_keys(keys[0] + d * kFold * lane_bytes, 2 * kFold * kLanes * lane_bytes);
          Vec elements[2][kFold];
          each_key([&](int k) {
            Vec pairs[2];
            int8_pairs(reinterpret_cast<const int8_t*>(keys[k]) + 2 * d, problem.head_dim - 2 * d, pairs);
            elements[0][k] = pairs[0];
            elements[1][k] = pairs[1];
          });
          add_products(elements[0], d);
          if (d + kLanes < depth) add_products(elements[1], d + kLanes);
        }
      } else {
        Vec elements[kFold];
        const auto load_key = [&](int k, int64_t d) {
          return kPairs ? load(reinterpret_cast<const float*>(keys[k]) + d) : load_as<kDtype>(keys[k], d);
        };
        if (R == 1 && whole * lane_bytes >= kWideBytes) {
          each_key([&](int k) {
            if (in_one_piece) prefetch_keys(keys[k], whole * lane_bytes);
            for (int64_t d = 0; d < whole; d += kLanes) {
              const Vec query = load(queries + d), element = load_key(k, d);
              sums[0][k] = kPairs ? dot_pairs(query, element, sums[0][k]) : mul_add(query, element, sums[0][k]);
            }
          });
        } else {
          for (int64_t d = 0; d < whole; d += kLanes) {
            if (in_one_piece) prefetch_keys(keys[0] + d * kFold * lane_bytes, kFold * kLanes * lane_bytes);
            each_key([&](int k) { elements[k] = load_key(k, d); });
            add_products(elements, d);
          }
        }
        const int64_t left = problem.head_dim - step * whole;
        if (left > 0) {
          each_key([&](int k) {
            elements[k] = kPairs ? load_pairs(keys[k], kDtype, step * whole, left)
                                 : load_elements(keys[k], kDtype, whole, left);
          });
          add_products(elements, whole);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) folded[r][i / kFold] = fold(sums[r]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_scores(sum_folded(folded[r]), count - j, scores + r * kBlockKeys + j);
  }
}

// The same of int8 in pairs, for keys of whole folds: a vector holds a fold of each of four keys, not all of one, and
// its sums need a quarter of the folding.
template <int R>
static void score_folds_in_place(const Problem& problem, const char* key, int64_t stride_bytes, const float* queries,
                                 int64_t count, float* scores) {
  const int64_t padded = round_up(key_depth(problem, true), kLanes);
  for (int64_t j = 0; j < count; j += kLanes) {
    const char* keys[kLanes];
    for (int k = 0; k < kLanes; ++k) keys[k] = key + (j + k < count ? j + k : count - 1) * stride_bytes;
    Vec sums[R][kFold];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int k = 0; k < kFold; ++k) sums[r][k] = zero();
    for (int64_t byte = 0; byte < problem.head_dim; byte += kInt8Fold) {
      if (stride_bytes == problem.head_dim) prefetch_keys(keys[0] + byte * kLanes, kInt8Fold * kLanes);
      Vec elements[kFold][2];
#pragma GCC unroll 16
      for (int k = 0; k < kFold; ++k) int8_pairs_of_keys(keys + k, byte, elements[k]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec query = broadcast_fold(queries + r * padded + byte / 2 + half * kInt8Fold / 4);
#pragma GCC unroll 16
          for (int k = 0; k < kFold; ++k) sums[r][k] = dot_pairs(query, elements[k][half], sums[r][k]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_scores(fold(sums[r]), count - j, scores + r * kBlockKeys + j);
  }
}

template <int R, Dtype kDtype, bool kPairs>
static void score_rows_in_place(int64_t rows, const Problem& problem, const char* key, int64_t stride_bytes,
                                const float* queries, int64_t count, float* scores) {
  if constexpr (R > 1) {
    if (rows < R)
      return score_rows_in_place<R - 1, kDtype, kPairs>(rows, problem, key, stride_bytes, queries, count, scores);
  }
  if constexpr (kPairs && kDtype == Dtype::int8) {
    if (problem.head_dim % kInt8Fold == 0)
      return score_folds_in_place<R>(problem, key, stride_bytes, queries, count, scores);
  }
  score_in_place<R, kDtype, kPairs>(problem, key, stride_bytes, queries, count, scores);
}

static void score_rows_in_place(int64_t rows, const Problem& problem, const Stretch& keys, bool pairs,
                                const float* queries, float* scores) {
  as_stored(problem.stored, pairs, [&](auto stored) {
    score_rows_in_place<kRowsInPlace, stored.dtype, stored.pairs>(rows, problem, keys.row, keys.stride_bytes, queries,
                                                                  keys.count, scores);
  });
}
