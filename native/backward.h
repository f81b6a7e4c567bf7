// The problem of a backward pass, its buffers, and the functions that one instruction set provides
// for it. No Python here.
//
// With weights P = exp(score - LSE), the gradient of a weight is dP = output gradient . value plus
// what statistics add, and that of a score is dS = P (dP - sum(P dP) + LSE gradient). Weights are
// computed again, so memory is linear in the number of tokens.
#pragma once

#include <cstdint>

#include "problem.h"
#include "target.h"

namespace keywise {

struct BackwardProblem {
  // Of the forward pass. Statistics are those that have gradients; their results are not used.
  Problem forward;
  // As the forward pass, but with the output's gradient in place of the query, values in place of
  // keys and keys in place of values: the products of the gradients with values are scores of it.
  Problem exchanged;
  Tensor output;               // [batch, query heads, queries, value_dim] in the problem's dtype
  const float* lse = nullptr;  // [batch, query heads, queries]
  const float* lse_rest = nullptr;  // what rounding took from it; may be null
  float scale = 1.0f;               // of the scores, as the caller gave it

  // Statistics and gradients of them, for the queries of Statistics; null where the loss does not
  // use them. Gradients of key mass are [batch, query heads, keys].
  const float* entropy = nullptr;
  const float* segment_mass = nullptr;
  const float* lse_gradient = nullptr;
  const float* entropy_gradient = nullptr;
  const float* key_mass_gradient = nullptr;
  const float* segment_mass_gradient = nullptr;

  // Results; null for those that are not wanted. Those of query, key and value are contiguous, in
  // the problem's dtype.
  void* query_gradient = nullptr;
  void* key_gradient = nullptr;
  void* value_gradient = nullptr;
  float* sinks_gradient = nullptr;  // [query heads]
  // Contiguous in the shape of the bias, with strides of 0 along the axes that it does not have.
  float* bias_gradient = nullptr;
  int64_t bias_gradient_stride[4] = {0, 0, 0, 0};

  KEYWISE_INLINE bool needs_scores() const {
    return query_gradient || key_gradient || bias_gradient;
  }
  // Returns whether the gradient of a score needs more than its weight, dP and one number per row.
  KEYWISE_INLINE bool has_extra_terms() const {
    return entropy_gradient || key_mass_gradient || segment_mass_gradient ||
           forward.dropout.is_active;
  }
};

// What the rows of a head need in all their tasks. Rows come in chunks of kGradientChunkRows, each
// with room behind its last row, because packing overwrites some floats there.
struct GradientRows {
  float* queries = nullptr;           // packed in tiles, times the query scale
  float* output_gradients = nullptr;  // packed in tiles
  float* query_rows = nullptr;        // [rows, key_width] unscaled
  float* gradient_rows = nullptr;     // [rows, value_width]
  float* lse = nullptr;               // [rows] 0 for a row without keys
  float* lse_rest = nullptr;          // [rows]
  // [rows] LSE gradient - sum(P dP), without the terms of single keys
  float* shift = nullptr;
  float* entropy_gradient = nullptr;       // [rows]
  float* query_weight = nullptr;           // [rows] 0 for a row without gradient of key mass
  VisibleKeys* visible = nullptr;          // [rows]
  TileVisibility* tile_visible = nullptr;  // [tiles]
  bool* finite = nullptr;  // [query blocks] neither NaN nor infinity in what rows are multiplied by
  double* sink_sums = nullptr;  // [chunks, group] gradients of the sinks
};

// Where the gradients of a bias of one task are summed: the task's own sums or the result itself.
struct BiasSums {
  float* sums = nullptr;
  int64_t head_stride = 0;  // of the query heads of a key head
  int64_t query_stride = 0;
  int64_t key_stride = 0;  // 0 or 1, keys counted from first_key
  int64_t first_key = 0;
};

// Sums of a task, as float32 without the scale: gradients of all queries of the head [rows,
// key_width], and of all its keys [keys, key_width] and values [keys, value_width]. A task writes
// those of its rows and keys alone.
struct GradientSums {
  float* queries = nullptr;
  float* keys = nullptr;
  float* values = nullptr;
  BiasSums bias;
};

// Temporary buffers of one thread.
struct GradientWorkspace {
  float* key_panels = nullptr;  // one block of keys, and of values
  float* value_panels = nullptr;
  float* key_rows = nullptr;  // [kBlockKeys, key_width]
  float* weights = nullptr;   // [kGradientBlockRows, kBlockKeys] scores, then weights
  float* scores = nullptr;    // [kGradientBlockRows, kBlockKeys] dP, then dS
  float* slopes = nullptr;    // [kMaxTileRows, kBlockKeys] derivatives of the softcap
  // [kBlockKeys], of one row: bias, what statistics add to dP, factors of dropout
  float* bias_row = nullptr;
  float* added_row = nullptr;
  float* dropout_row = nullptr;
  KeyRange* tile_keys = nullptr;  // [kGradientBlockRows] per tile: keys of the block with scores
};

KEYWISE_INLINE constexpr int64_t key_width(const Problem& problem) {
  return round_up(problem.head_dim, kPadFloats);
}

// Return the place of a row in packed rows of `dim` elements. Only for the first row of a tile.
KEYWISE_INLINE constexpr int64_t packed_chunk_floats(int64_t dim) {
  return kGradientChunkRows * dim + kPadFloats;
}
KEYWISE_INLINE constexpr int64_t packed_row_offset(int64_t row, int64_t dim) {
  return row / kGradientChunkRows * packed_chunk_floats(dim) + row % kGradientChunkRows * dim;
}

}  // namespace keywise
