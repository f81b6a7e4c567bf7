// What kernels work on (tasks, buffers, state) and the functions that one instruction set provides.
#pragma once

#include <cstdint>

#include "problem.h"
#include "quantised.h"
#include "softmax_state.h"

namespace keywise {

// Keys and values of one head in the layout of the tiles, packed once for all tasks that share
// them.
struct PackedHead {
  float* keys = nullptr;    // panels [head_dim or pairs][keys of a panel]
  float* values = nullptr;  // [keys or pairs of keys, value_width]
  bool* finite = nullptr;   // [blocks] the values hold neither NaN nor infinity
};

// Some query rows of one key head against some keys. Row r is head r % group of token r / group. A
// task that continues adds to the state of the task before it, whose rows are the same. Keys are
// split by their number alone, so no result depends on the chunks in which they are stored.
struct Task {
  int64_t item = 0;
  int64_t key_head = 0;
  int64_t first_row = 0;
  int64_t last_row = 0;
  int64_t first_key = 0;
  int64_t last_key = 0;
  bool continues = false;
  const PackedHead* packed = nullptr;  // null: the task packs keys and values itself

  KEYWISE_INLINE int64_t rows() const { return last_row - first_row; }
  KEYWISE_INLINE int64_t token(int64_t row, int64_t group) const {
    return (first_row + row) / group;
  }
  KEYWISE_INLINE int64_t query_head(int64_t row, int64_t group) const {
    return key_head * group + (first_row + row) % group;
  }
};

// Keys begin .. end - 1.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Keys that a row sees: those kept by MaskRules::keep_first, and those near the row. Either range
// may be empty.
struct VisibleKeys {
  KeyRange kept;
  KeyRange near;
};

// Keys that some rows of a tile see, without gaps, and keys that all of them see.
struct TileVisibility {
  VisibleKeys any;
  VisibleKeys all;
};

// The partial of a task. Scores are those before the plain scaling (Problem::score_unit): the
// difference to the running maximum is taken first and scaled then, which keeps it exact where it
// matters, however large the scores are.
struct State {
  SoftmaxState* softmax = nullptr;  // [rows]
  float* inverse = nullptr;         // [rows] 1 / denominator, after write_results
  float* values = nullptr;          // [rows, value_width] weighted sums
  float* top_scores = nullptr;      // [rows, top_k] largest first
  int32_t* top_keys = nullptr;      // [rows, top_k] -1 for none
};

// Scores of some rows against blocks of keys, replaced by their weights exp(score - running max)
// where statistics need them.
struct ScoreBuffer {
  int64_t first_key = 0;
  int64_t key_count = 0;
  int64_t block_count = 0;
  float* weights = nullptr;  // [blocks, rows, kBlockKeys]
  // [blocks, rows], at the first row of each tile: which keys of the block were written, and
  // whether a row hides one.
  int32_t* begin = nullptr;
  int32_t* end = nullptr;
  bool* hides = nullptr;
  float* running_max = nullptr;  // [rows] of the row when its weights were computed
  // Segment ranges that meet these keys, and the sums of their weights: [tiles, ranges,
  // kPadFloats], lane r is row r of the tile.
  int64_t first_range = 0;
  int64_t range_count = 0;
  float* range_sums = nullptr;
};

// Temporary buffers of one thread.
struct Workspace {
  float* queries = nullptr;  // packed query rows
  float* keys = nullptr;     // one block of keys in panels
  float* values = nullptr;   // one block of values
  // [kMaxTileRows, kBlockKeys] weights of a tile as pairs or times scales
  float* tile_weights = nullptr;
  float* lane_max = nullptr;      // [rows, lanes] largest score of every lane
  float* lane_sums = nullptr;     // [rows, lanes] sums of weights
  float* lane_moments = nullptr;  // [rows, lanes] sums of weight x (score - running max) in base 2
  float* block_row = nullptr;     // [kBlockKeys] one row of bias or of key mass
  // Scores that compete for one row's top k, then room for the same by rank; and their keys.
  float* candidates = nullptr;
  int32_t* candidate_keys = nullptr;
  float* rescale = nullptr;                // [rows] factor of the values accumulated so far
  VisibleKeys* visible = nullptr;          // [rows]
  TileVisibility* tile_visible = nullptr;  // [tiles]
};

constexpr int64_t kMaxTileRows = 16;

// Candidates of a row at most, and a vector behind them.
KEYWISE_INLINE constexpr int64_t candidate_capacity(int64_t top_k) {
  return 2 * top_k + kSpareCandidates + kPadFloats;
}

// Sums of numbers of this size lose bits where subnormal numbers are flushed: up to 2^31 numbers
// below 2^-126 are missing, and 24 bits count.
constexpr float kTinySize = 0x1p-64f;

// How the weighted values of a row lie in the range of float32. The bits of several rows combine.
enum ValueRange : unsigned {
  kInRange = 0,
  kAboveRange = 1,  // NaN or infinite: a sum may have overflowed
  kBelowRange = 2,  // tiny
  kAllZero = 4,     // 0, or tiny numbers that were flushed
};

// Of a backward pass: backward.h.
struct BackwardProblem;
struct GradientRows;
struct GradientWorkspace;
struct GradientSums;

// One instruction set. Its functions allocate nothing and throw nothing.
struct Target {
  const char* name;
  bool has_bf16_dot;  // bfloat16 is packed in pairs, which take half the room
  int64_t tile_rows;  // rows that are scored together

  // Packs the blocks of the task's keys that one of its rows sees.
  void (*pack_head)(const Problem&, const Task&, const PackedHead&);
  // Computes the state and the score buffer of a task.
  void (*forward)(const Problem&, const Task&, const Workspace&, const State&, const ScoreBuffer&);
  // Merges `from`, whose keys come after those of `into`, into `into`.
  void (*merge)(const Problem&, const Workspace&, int64_t rows, const State& into,
                const State& from);
  // Writes outputs and the statistics of rows from a complete state. Returns bits of ValueRange.
  unsigned (*write_results)(const Problem&, const Task&, const State&, const ScoreBuffer*,
                            int64_t score_buffers);
  // Returns whether a value of the task's keys is so small that flushing it would count.
  bool (*has_tiny_values)(const Problem&, const Task&);
  // Adds the key mass of the rows of a finished task to `sums` [group, keys], which several tasks
  // share; where `sums` is null, writes it to `mass`.
  void (*accumulate_key_mass)(const Problem&, const Task&, const State&, const ScoreBuffer&,
                              const Workspace&, double* sums, float* mass);

  // Fills GradientRows for the rows of a task: one chunk of a head.
  void (*prepare_gradient_rows)(const BackwardProblem&, const Task&, const GradientRows&,
                                const GradientWorkspace&);
  // Computes the sums of a task of a backward pass: some rows of a key head against some keys.
  void (*add_gradients)(const BackwardProblem&, const Task&, const GradientRows&,
                        const GradientWorkspace&, const GradientSums&);
  // Write gradients from the sums of several tasks, which are added in order and overwritten.
  void (*write_query_gradients)(const BackwardProblem&, const Task&, float* const* sums,
                                int64_t sum_count);
  void (*write_key_gradients)(const BackwardProblem&, const Task&, float* const* key_sums,
                              float* const* value_sums, int64_t sum_count);

  // Fills the rows of `to` from contiguous rows of inputs, for a product with a matrix of a format.
  void (*round_inputs)(BlockFormat format, const void* inputs, Dtype dtype, int64_t columns,
                       const QuantisedInputs& to);
  // Computes some rows of the matrix for all inputs; `packed` has room for them if they are many.
  void (*multiply_rows)(const QuantisedProduct&, const PackedRows& packed, int64_t first_row,
                        int64_t last_row);
  // Writes the weights of some rows; `output` is the place of row 0.
  void (*dequantise_rows)(const QuantisedMatrix&, int64_t first_row, int64_t last_row, void* output,
                          Dtype dtype);

  // Measures what the CPU can do at most, for benchmarks: operations in registers alone, on pairs
  // of bfloat16 where the target multiplies them directly; and the sum of a buffer.
  double (*multiply_adds)(int64_t rounds, bool pairs);
  double (*add_up)(const float* data, int64_t count);
};

}  // namespace keywise
