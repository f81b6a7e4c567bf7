// The problem that one attention call solves: arrays with their strides, and where results go. No
// Python here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "always_inline.h"
#include "integers.h"
#include "tuning.h"

namespace keywise {

// int8 is for keys and values only, with a scale per token and head.
enum class Dtype { float32, float16, bfloat16, int8 };

KEYWISE_INLINE constexpr int64_t bytes_of(Dtype dtype) {
  if (dtype == Dtype::float32) return 4;
  if (dtype == Dtype::int8) return 1;
  return 2;
}

// Axes are [batch, heads, tokens, head_dim]; strides count elements; the last axis is contiguous.
struct Tensor {
  const void* data = nullptr;
  int64_t stride[4] = {0, 0, 0, 0};
};

// [batch, heads, tokens], the last axis contiguous; without data every scale is 1.
struct Scales {
  const float* data = nullptr;
  int64_t stride[2] = {0, 0};
};

// Keys first_key .. first_key + keys - 1 of a problem and their values, in memory of their own.
struct Chunk {
  Tensor key;
  Tensor value;
  Scales key_scale;
  Scales value_scale;
  int64_t first_key = 0;
  int64_t keys = 0;
};

// [batch, query heads, queries, keys], broadcast by zero strides.
struct Bias {
  const void* data = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t stride[4] = {0, 0, 0, 0};
};

// All positions are absolute: key j of this problem stands at first_key + j.
struct MaskRules {
  bool causal = false;
  int64_t left = -1;   // keys seen before the query's own position, -1 for all
  int64_t right = -1;  // keys seen after it, -1 for all
  int64_t keep_first = 0;
  int64_t first_key = 0;
  const int64_t* lengths = nullptr;    // [batch]
  const int64_t* starts = nullptr;     // [batch]
  const int32_t* documents = nullptr;  // [batch, positions]
  int64_t positions = 0;               // of documents
  // [batch, query heads, queries, keys], broadcast by zero strides; any byte but 0 is true
  const uint8_t* allowed = nullptr;
  int64_t allowed_stride[4] = {0, 0, 0, 0};
};

// Drops weights at random: a weight whose random number of 32 bits is below the threshold becomes
// 0, and the others are multiplied by the factor. The number depends on the seed, the offset, the
// batch item, the query head, the query and the key alone (dropout.h).
struct Dropout {
  bool is_active = false;
  uint64_t seed = 0;
  uint32_t offset = 0;
  uint32_t threshold = 0;
  float factor = 1.0f;
};

// Which statistics to compute for the queries first_query .. last_query - 1, and the contiguous
// arrays that receive them.
struct Statistics {
  int64_t first_query = 0;
  int64_t last_query = 0;
  int64_t top_k = 0;
  int64_t segments = 0;
  // [segment_range_count, 3]: first key, key after the last, segment
  const int64_t* segment_ranges = nullptr;
  int64_t segment_range_count = 0;
  // [batch, query heads, queries] by zero strides; null for 1 everywhere
  const float* query_weights = nullptr;
  int64_t query_weight_stride[3] = {0, 0, 0};

  float* lse = nullptr;           // [batch, query heads, queries]
  float* entropy = nullptr;       // [batch, query heads, queries]
  int32_t* top_keys = nullptr;    // [batch, query heads, queries, top_k]
  float* top_weights = nullptr;   // [batch, query heads, queries, top_k]
  float* top_mass = nullptr;      // [batch, query heads, queries] sum of top_weights
  float* key_mass = nullptr;      // [batch, query heads, keys]; may be null
  float* segment_mass = nullptr;  // [batch, query heads, queries, segments]; may be null

  // Returns how many segment ranges end at this key or before.
  KEYWISE_INLINE int64_t ranges_ended(int64_t key) const {
    int64_t low = 0;
    int64_t high = segment_range_count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      const int64_t end = segment_ranges[3 * middle + 1];
      if (end <= key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

struct Problem {
  int64_t batch = 0;
  int64_t query_heads = 0;
  int64_t key_heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  Dtype dtype = Dtype::float32;         // of queries and output
  Dtype stored_dtype = Dtype::float32;  // of keys and values: the same, or int8
  Tensor query;
  const Chunk* chunks = nullptr;  // in key order, without gaps
  int64_t chunk_count = 0;
  Bias bias;
  const float* sinks = nullptr;  // [query heads]
  float scale = 1.0f;
  // A power of two that is taken out of `scale` and multiplies the queries instead: scores then
  // overflow only where they are too large themselves, not where query . key is.
  float query_scale = 1.0f;
  // A power of two that multiplies the values of a call that is repeated because weighted sums of
  // the unscaled values left the range of float32. Only results out of range are written then.
  float value_scale = 1.0f;
  float softcap = 0.0f;  // 0 for none
  Dropout dropout;       // of the weights that meet values; statistics are of those before it
  MaskRules visibility;

  // Either the output in the problem's dtype, or the partial in float32, contiguous.
  void* output = nullptr;
  int64_t output_stride[4] = {0, 0, 0, 0};
  float* running_max = nullptr;  // [batch, query heads, queries]
  float* running_sum = nullptr;  // [batch, query heads, queries]
  float* values = nullptr;       // [batch, query heads, queries, value_dim]
  // [batch, query heads, queries] LSE of every query, where a backward pass needs it, and what
  // rounding took from it
  float* query_lse = nullptr;
  float* query_lse_rest = nullptr;

  bool wants_statistics = false;
  Statistics statistics;

  // Returns whether a score needs more than a multiplication inside the exponential.
  KEYWISE_INLINE bool transforms_scores() const {
    return softcap > 0.0f || bias.data || !(scale > 0.0f);
  }
  // Return the factor from a stored score to nats, and to base 2.
  KEYWISE_INLINE float score_unit() const { return transforms_scores() ? 1.0f : scale; }
  KEYWISE_INLINE float score_unit_base2() const {
    constexpr float kLog2E = 1.44269504088896340736f;
    return score_unit() * kLog2E;
  }

  KEYWISE_INLINE bool rescales_values() const { return value_scale != 1.0f; }
  // Returns whether a target may take keys and values as pairs of bfloat16. Both that are stored
  // under bfloat16 queries, bfloat16 and int8, are exact in bfloat16. Rescaled values may not be.
  KEYWISE_INLINE bool allows_bf16_pairs() const {
    return dtype == Dtype::bfloat16 && !rescales_values();
  }

  // Heaviest keys wanted per row.
  KEYWISE_INLINE int64_t top_k() const { return wants_statistics ? statistics.top_k : 0; }
  // Query heads per key head.
  KEYWISE_INLINE int64_t group() const { return query_heads / key_heads; }
  KEYWISE_INLINE int64_t value_width() const { return round_up(value_dim, kPadFloats); }
};

// Throws unless every size, count and index of a call fits 64 bits.
void check_sizes(const Problem& problem);

// Returns the problem with the power of two of its scale, or of scale / softcap, moved to the
// queries. Larger ones stay: queries might overflow.
Problem scale_queries(const Problem& problem);

}  // namespace keywise
