// What a kernel works on (tasks, strips, workspace) and what one instruction set offers.
#pragma once

#include "problem.h"

namespace keywise {

struct Packed;

// Part of a problem: some query rows of one key head against some keys. Row r is head r % group of token r / group. A
// task that continues adds to the state of the task before it, whose rows are the same. Keys are split by their number
// alone, so that no result depends on the pieces they come in.
struct Task {
  int64_t item = 0, key_head = 0;
  int64_t first_row = 0, last_row = 0;
  int64_t first_key = 0, last_key = 0;
  bool continues = false;
  const Packed* packed = nullptr;  // null: a task packs for itself
  KEYWISE_INLINE int64_t rows() const { return last_row - first_row; }
  KEYWISE_INLINE int64_t token(int64_t row, int64_t group) const { return (first_row + row) / group; }
  KEYWISE_INLINE int64_t query_head(int64_t row, int64_t group) const {
    return key_head * group + (first_row + row) % group;
  }
};

// The partial of a task. Stored scores are those before the plain scaling (Problem::score_unit): the difference to the
// peak is taken first and scaled then, which keeps it exact where it matters, however large the scores are.
struct State {
  float* running_max = nullptr;        // [rows]
  float* running_sum = nullptr;       // [rows]
  float* score_moment = nullptr;      // [rows] sum of weight x (score - peak) in base 2, for the entropy
  float* inverse = nullptr;     // [rows] of the denominator, once finished
  float* values = nullptr;      // [rows, value_width]
  float* top_scores = nullptr;  // [rows, top] largest first
  int32_t* top_keys = nullptr;  // [rows, top] -1 where there is none
};

// Scores of some rows against blocks of keys, and then, where a reading wants them, their weights exp(score - peak).
struct Strip {
  int64_t first_key = 0, keys = 0, blocks = 0;
  float* weights = nullptr;  // [blocks, rows, kBlockKeys]
  // [blocks, rows] at the first row of a tile: the written part of its rows, and whether one of them hides a key
  int32_t* begin = nullptr;
  int32_t* end = nullptr;
  bool* hides = nullptr;
  float* running_maxes = nullptr;  // [rows] the row's peak when its weights were made
  // The runs of the reading that meet these keys, and the sums of their weights: [tiles, runs, kPad], lane r of a tile
  // is its row r.
  int64_t first_range = 0, segment_ranges = 0;
  float* range_sums = nullptr;
};

// Keys and values of one head as the tiles read them, packed once for all tasks that share them.
struct Packed {
  float* keys = nullptr;
  float* values = nullptr;
  bool* finite = nullptr;  // per block: its values hold neither NaN nor infinity
};

// Scratch of one thread; core.cpp says what each pointer holds.
struct Workspace {
  float* queries = nullptr;
  float* keys = nullptr;
  float* values = nullptr;
  float* factors = nullptr;
  float* largest = nullptr;
  float* totals = nullptr;
  float* moments = nullptr;
  float* line = nullptr;
  float* candidates = nullptr;
  int32_t* candidate_keys = nullptr;
  float* rescale = nullptr;
  int64_t* spans = nullptr;
};
constexpr int64_t kSpanNumbers = 4;
constexpr int64_t kMaximumTileRows = 16;
// Room for the candidates for the heaviest keys that wait to be chosen from, and for a vector behind them.
KEYWISE_INLINE constexpr int64_t candidate_room(int64_t top) { return 2 * top + 64 + kPad; }

// One instruction set. Its functions allocate nothing and throw nothing.
struct Target {
  const char* name;
  // Whether bfloat16 is packed in pairs, which take half the room.
  bool has_bf16_dot;
  // Rows that are scored together.
  int64_t tile_rows;
  // Fills the blocks of the task's keys that one of its rows sees.
  void (*pack)(const Problem&, const Task&, const Packed&);
  // Fills the state and the strip.
  void (*compute)(const Problem&, const Task&, const Workspace&, const State&, const Strip&);
  // Puts `from`, whose keys come after those of `into`, into `into`.
  void (*merge)(const Problem&, const Workspace&, int64_t rows, const State& into, const State& from);
  // Turns the state into outputs and the readings of rows.
  void (*finish)(const Problem&, const Task&, const State&, const Strip*, int64_t strips);
  // The key mass of the rows of a finished task against one strip: added to the sums [group, keys] of several tasks, or,
  // where no other task has these keys, written as it is.
  void (*accumulate_key_mass)(const Problem&, const Task&, const State&, const Strip&, const Workspace&, double* sums,
                      float* mass);
  // For the benchmarks: operations done in registers alone, on pairs of bfloat16 where the target multiplies them
  // directly; and the sum of a buffer, read as fast as can be.
  double (*multiply_adds)(int64_t rounds, bool pairs);
  double (*add_up)(const float* data, int64_t count);
};

}  // namespace keywise
