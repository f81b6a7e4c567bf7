// Packing: rows of any dtype and stride become the layouts that tiles read.
//
// Inputs: query, key and value rows as the caller has them. Outputs, of float32 or of pairs of
// bfloat16: query panels [depth][rows of a tile], or rows padded to whole vectors for keys in
// place; key panels [depth][kPanelKeys]; value rows of value_width floats, or two keys as one row
// of pairs. Conversions are exact. Tail rule: zeros in lanes and columns without an element, and in
// place of keys behind the last.
#pragma once

#include <cstdint>

#include "chunk_rows.h"
#include "elements.h"
#include "simd.h"
#include "task_context.h"

namespace keywise::KEYWISE_TARGET {

// Loads lanes d .. d + kLanes - 1 of a row that has `left` elements from lane d on, enough for all.
template <Dtype kDtype, bool kPairs>
KEYWISE_INLINE Vec load_full_lanes(const char* row, int64_t d, int64_t left) {
  return kPairs ? load_pairs(row, kDtype, 2 * d, left) : load_as<kDtype>(row, d);
}

// Loads the same lanes, with zeros behind the last element.
template <Dtype kDtype, bool kPairs>
KEYWISE_INLINE Vec load_lanes(const char* row, int64_t d, int64_t left) {
  return kPairs ? load_pairs(row, kDtype, 2 * d, left) : load_elements(row, kDtype, d, left);
}

// Loads lanes d .. d + kLanes - 1 of kLanes rows and transposes them: tile[i] is lane d + i of the
// rows. Rows from `row_count` on are zeros; `left` elements are left of each row.
template <Dtype kDtype, bool kPairs>
static inline void load_transposed(const char* const* rows, int64_t row_count, int64_t d,
                                   int64_t left, Vec* tile) {
  const auto load_full = [&](auto count) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      tile[i] = i >= count ? zero() : load_full_lanes<kDtype, kPairs>(rows[i], d, left);
  };
  const bool full_lanes = left >= (kPairs ? 2 : 1) * kLanes;
  if (full_lanes && row_count >= kLanes) {
    load_full(Count<kLanes>{});
  } else if (full_lanes && row_count == kTileRows) {
    load_full(Count<kTileRows>{});
  } else {
    for (int i = 0; i < kLanes; ++i)
      tile[i] = i >= row_count ? zero() : load_lanes<kDtype, kPairs>(rows[i], d, left);
  }
  transpose(tile);
}

// Packs the keys first_key .. last_key - 1 into panels. Half a panel without keys is not written.
template <Dtype kDtype, bool kPairs>
static void pack_keys(const Problem& problem, const Task& task, int64_t first_key, int64_t last_key,
                      float* panels) {
  const int64_t depth = key_depth(problem, kPairs);
  const int64_t elements_per_lane = kPairs ? 2 : 1;
  for (int64_t panel = first_key; panel < last_key;
       panel += kPanelKeys, panels += depth * kPanelKeys) {
    for (int64_t half = 0; half < kPanelKeys && panel + half < last_key; half += kLanes) {
      const int64_t key = panel + half;
      const int64_t count = clamp(last_key - key, 0, kLanes);
      const char* rows[kLanes];
      list_rows(problem, task, &Chunk::key, key, key + count, rows);
      const int64_t stride_bytes =
          find_rows(problem, task, &Chunk::key, key, key + count).stride_bytes;
      float* place = panels + half;
      for (int64_t d = 0; d < depth; d += kLanes, place += kLanes * kPanelKeys) {
        // The next keys arrive while these are transposed.
        const int64_t next_bytes = kLanes * stride_bytes + d * elements_per_lane * bytes_of(kDtype);
        for (int i = 0; i < count; ++i) __builtin_prefetch(rows[i] + next_bytes);
        Vec tile[kLanes];
        load_transposed<kDtype, kPairs>(rows, count, d, problem.head_dim - d * elements_per_lane,
                                        tile);
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

static void pack_keys(const Problem& problem, const Task& task, int64_t first_key, int64_t last_key,
                      bool pairs, float* panels) {
  with_encoding(problem.stored_dtype, pairs, [&](auto encoding) {
    pack_keys<encoding.dtype, encoding.pairs>(problem, task, first_key, last_key, panels);
  });
}

// Returns up to kLanes elements as bfloat16, in place or narrowed to `padded`, which has room for
// twice as many.
static inline const uint16_t* narrow_elements(const char* row, Dtype dtype, int64_t index,
                                              int64_t count, uint16_t* padded) {
  if (dtype == Dtype::bfloat16 && count >= kLanes)
    return reinterpret_cast<const uint16_t*>(row) + index;
  const Vec pairs = count > 0 ? load_pairs(row, dtype, index, clamp(count, 0, kLanes)) : zero();
  store(reinterpret_cast<float*>(padded), pairs);
  return padded;
}

// Packs the values of the keys first_key .. last_key - 1 of a block. Keys before `visible_key`
// become zeros without being read, and so does a key behind the last that completes a pair.
static void pack_values(const Problem& problem, const Task& task, int64_t first_key,
                        int64_t visible_key, int64_t last_key, bool pairs, float* packed) {
  const int64_t width = problem.value_width();
  const Vec value_scale = broadcast(problem.value_scale);
  const char* rows[kBlockKeys];
  list_rows(problem, task, &Chunk::value, visible_key, last_key, rows);
  const auto find_row = [&](int64_t key) {
    return key < visible_key || key >= last_key ? nullptr : rows[key - visible_key];
  };
  for (int64_t key = first_key; key < last_key; key += pairs ? 2 : 1, packed += width) {
    const char* row = find_row(key);
    const char* next = pairs ? find_row(key + 1) : nullptr;
    for (int64_t d = 0; d < width; d += kLanes) {
      const int64_t left = problem.value_dim - d;
      if (pairs) {
        uint16_t padded[2][2 * kLanes];
        const uint16_t* even =
            narrow_elements(row, problem.stored_dtype, d, row ? left : 0, padded[0]);
        const uint16_t* odd =
            narrow_elements(next, problem.stored_dtype, d, next ? left : 0, padded[1]);
        store(packed + d, interleave(even, odd));
      } else {
        const Vec values =
            row && left > 0 ? load_elements(row, problem.stored_dtype, d, left) : zero();
        store(packed + d, mul(values, value_scale));
      }
    }
  }
}

// Multiplies a vector of queries by Problem::query_scale.
template <bool kPairs>
KEYWISE_INLINE Vec scale_queries(Vec queries, Vec query_scale) {
  return kPairs ? scale_pairs(queries, query_scale) : mul(queries, query_scale);
}

// Packs the task's query rows, times their scale. Up to kLanes - 1 floats behind the last are
// overwritten.
template <Dtype kDtype, bool kPairs>
static void pack_queries(const Problem& problem, const Task& task, bool row_by_row, float* packed) {
  const int64_t depth = key_depth(problem, kPairs);
  const int64_t group = problem.group();
  const int64_t rows_per_step = row_by_row ? 1 : kTileRows;
  const Vec query_scale = broadcast(problem.query_scale);
  for (int64_t first_row = 0; first_row < task.rows(); first_row += rows_per_step) {
    const int64_t row_count = min(rows_per_step, task.rows() - first_row);
    const char* rows[kTileRows];
    for (int64_t r = 0; r < row_count; ++r) {
      const int64_t row = first_row + r;
      rows[r] = row_address(problem.query, kDtype, task.item, task.query_head(row, group),
                            task.token(row, group));
      // All rows of a tile arrive while the first is transposed.
      for (int64_t byte = 0; byte < problem.head_dim * bytes_of(kDtype); byte += kCacheLineBytes)
        __builtin_prefetch(rows[r] + byte);
    }
    for (int64_t d = 0; d < depth; d += kLanes) {
      const int64_t left = problem.head_dim - (kPairs ? 2 : 1) * d;
      if (row_by_row) {
        const Vec queries = load_lanes<kDtype, kPairs>(rows[0], d, left);
        store(packed, scale_queries<kPairs>(queries, query_scale));
        packed += kLanes;
        continue;
      }
      Vec tile[kLanes];
      load_transposed<kDtype, kPairs>(rows, row_count, d, left, tile);
      const int64_t count = min(kLanes, depth - d);
      for (int64_t i = 0; i < count; ++i, packed += row_count)
        store(packed, scale_queries<kPairs>(tile[i], query_scale));
    }
  }
}

static void pack_queries(const Problem& problem, const Task& task, bool pairs, bool row_by_row,
                         float* packed) {
  with_encoding(problem.dtype, pairs, [&](auto encoding) {
    pack_queries<encoding.dtype, encoding.pairs>(problem, task, row_by_row, packed);
  });
}

// Returns whether the values of the keys first_key .. last_key - 1 hold neither NaN nor infinity.
static bool are_values_finite(const Problem& problem, const Task& task, int64_t first_key,
                              int64_t last_key) {
  Vec products = zero();  // 0 x NaN and 0 x inf are NaN
  ChunkRows values;
  for (int64_t key = first_key; key < last_key; key += values.count) {
    values = find_rows(problem, task, &Chunk::value, key, last_key);
    const char* row = values.first_row;
    for (int64_t i = 0; i < values.count; ++i, row += values.stride_bytes)
      for (int64_t d = 0; d < problem.value_dim; d += kLanes)
        products = mul_add(load_elements(row, problem.stored_dtype, d, problem.value_dim - d),
                           zero(), products);
  }
  return reduce_add(products) == 0.0f;
}

// Returns whether a value of the task's keys is neither 0 nor of the usual size: the sums of such
// values lose bits where subnormal numbers are flushed.
static bool has_tiny_values(const Problem& problem, const Task& task) {
  const auto is_tiny = [](Vec x) {
    const Vec tiny = if_less(abs(x), broadcast(kTinySize), x, zero());
    return (greater_mask(tiny, zero()) | greater_mask(zero(), tiny)) != 0;
  };
  ChunkRows values;
  for (int64_t key = task.first_key; key < task.last_key; key += values.count) {
    values = find_rows(problem, task, &Chunk::value, key, task.last_key);
    const char* row = values.first_row;
    for (int64_t i = 0; i < values.count; ++i, row += values.stride_bytes) {
      const Vec scale = broadcast(values.scales ? values.scales[i] : 1.0f);
      for (int64_t d = 0; d < problem.value_dim; d += kLanes) {
        const int64_t left = problem.value_dim - d;
        if (is_tiny(mul(load_elements(row, problem.stored_dtype, d, left), scale))) return true;
      }
    }
  }
  return false;
}

// Packs the blocks of the task's keys that one of its rows sees, for all tasks of the head.
static void pack_head(const Problem& problem, const Task& task, const PackedHead& packed) {
  const bool pairs = uses_bf16_pairs(problem);
  const int64_t depth = key_depth(problem, pairs);
  const int64_t width = problem.value_width();
  const int64_t keys_per_row = pairs ? 2 : 1;
  const VisibleKeys visible = find_visible_keys(problem, task);
  for (int64_t block = task.first_key; block < task.last_key; block += kBlockKeys) {
    const KeyRange seen = clip_to_block(visible, block, min(kBlockKeys, task.last_key - block));
    if (is_empty(seen)) continue;
    const int64_t first_panel = block + round_down(seen.begin, kPanelKeys);
    const int64_t first_key = block + seen.begin;
    const int64_t last_key = block + seen.end;
    pack_keys(problem, task, first_panel, last_key, pairs, packed.keys + first_panel * depth);
    pack_values(problem, task, first_panel, first_key, last_key, pairs,
                packed.values + first_panel / keys_per_row * width);
    packed.finite[block / kBlockKeys] = are_values_finite(problem, task, first_key, last_key);
  }
}

// Returns the panels of a block, counted from its first key. Packs them if the task packs keys
// itself and has not yet done so.
static const float* prepare_key_panels(TaskContext& context, const KeyBlock& block) {
  const Task& task = context.task;
  if (task.packed) return task.packed->keys + block.first_key * context.key_depth;
  const int64_t first_panel = round_down(block.visible.begin, kPanelKeys);
  if (context.packed_key_block != block.index) {
    pack_keys(context.problem, task, block.first_key + first_panel,
              block.first_key + block.visible.end, context.key_pairs, context.workspace.keys);
    context.packed_key_block = block.index;
  }
  return context.workspace.keys - first_panel * context.key_depth;
}

// Returns the packed values of a block, counted from its first key. Packs them if the task packs
// values itself and has not yet done so.
static const float* prepare_value_rows(TaskContext& context, const KeyBlock& block) {
  const Task& task = context.task;
  const int64_t keys_per_row = context.value_pairs ? 2 : 1;
  if (task.packed)
    return task.packed->values + block.first_key / keys_per_row * context.value_width;
  const int64_t first_panel = round_down(block.visible.begin, kPanelKeys);
  if (context.packed_value_block != block.index) {
    pack_values(context.problem, task, block.first_key + first_panel,
                block.first_key + block.visible.begin, block.first_key + block.visible.end,
                context.value_pairs, context.workspace.values);
    context.packed_value_block = block.index;
  }
  return context.workspace.values - first_panel / keys_per_row * context.value_width;
}

// Returns whether the values of a block that some row sees are finite.
static bool has_finite_values(TaskContext& context, const KeyBlock& block) {
  if (context.problem.stored_dtype == Dtype::int8) return true;
  if (context.task.packed) return context.task.packed->finite[block.first_key / kBlockKeys];
  if (context.examined_block != block.index) {
    context.values_are_finite =
        are_values_finite(context.problem, context.task, block.first_key + block.visible.begin,
                          block.first_key + block.visible.end);
    context.examined_block = block.index;
  }
  return context.values_are_finite;
}

}  // namespace keywise::KEYWISE_TARGET
