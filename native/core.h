// The whole C++ interface: a validated problem goes in, arrays are filled. Nothing here knows Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

// Always inlined: target files are compiled with other flags, and no copy of theirs may serve the rest.
#define KEYWISE_INLINE [[gnu::always_inline]] inline

namespace keywise {

// int8 is for keys and values alone, with a scale per token and head.
enum class Dtype { float32, float16, bfloat16, int8 };

KEYWISE_INLINE constexpr int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::float32 ? 4 : dtype == Dtype::int8 ? 1 : 2;
}

// Keys are taken in blocks of this many: a tile of scores (12 x 256 floats) stays in the first-level cache.
constexpr int64_t kBlockKeys = 256;
// No strip has more keys than this.
constexpr int64_t kStripKeys = 8 * kBlockKeys;
// Rows of value vectors are padded to this many floats, a multiple of every target's vector width.
constexpr int64_t kPad = 16;

KEYWISE_INLINE constexpr int64_t round_up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

// Strides count elements; axes are [batch, heads, tokens, head_dim]; the last one is contiguous.
struct Tensor {
  const void* data = nullptr;
  int64_t stride[4] = {0, 0, 0, 0};
};

// [batch, heads, tokens], the last axis contiguous; without data every scale is 1.
struct Scales {
  const float* data = nullptr;
  int64_t stride[2] = {0, 0};
};

// Keys first_key .. first_key + keys - 1 of a problem: keys and values come in pieces, each with memory of its own.
struct Piece {
  Tensor key, value;
  Scales key_scale, value_scale;
  int64_t first_key = 0, keys = 0;
};

struct Bias {
  const void* data = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t stride[4] = {0, 0, 0, 0};
};

// All positions are absolute: key j of this problem stands at first_key + j.
struct Visibility {
  bool causal = false;
  int64_t left = -1;   // keys seen before the query's own position, -1 for all
  int64_t right = -1;  // and after it
  int64_t keep_first = 0;
  int64_t first_key = 0;
  const int64_t* lengths = nullptr;    // [batch]
  const int64_t* starts = nullptr;     // [batch]
  const int32_t* documents = nullptr;  // [batch, positions]
  int64_t positions = 0;
  const bool* allowed = nullptr;  // broadcast by zero strides
  int64_t allowed_stride[4] = {0, 0, 0, 0};
};

// Where a reading goes. Rows are the query tokens first_row .. last_row - 1; arrays are contiguous.
struct Reading {
  int64_t first_row = 0;
  int64_t last_row = 0;
  float* lse = nullptr;      // [batch, query heads, rows]
  float* entropy = nullptr;  // [batch, query heads, rows]
  int64_t top = 0;
  int32_t* top_keys = nullptr;   // [batch, query heads, rows, top]
  float* top_weights = nullptr;  // [batch, query heads, rows, top]
  float* covered = nullptr;      // [batch, query heads, rows] their sum
  float* key_mass = nullptr;     // [batch, query heads, keys]
  float* segment_mass = nullptr;  // [batch, query heads, rows, segments]
  int64_t segments = 0;
  const int64_t* runs = nullptr;  // [run_count, 3]: first key, key after the last, segment
  int64_t run_count = 0;
  const float* row_weights = nullptr;  // broadcast by zero strides; null for 1 everywhere
  int64_t row_weight_stride[3] = {0, 0, 0};

  // Runs that end at this key or before.
  KEYWISE_INLINE int64_t runs_ended(int64_t key) const {
    int64_t low = 0, high = run_count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (runs[3 * middle + 1] <= key)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

struct Problem {
  int64_t batch = 0, query_heads = 0, key_heads = 0, queries = 0, keys = 0, head_dim = 0, value_dim = 0;
  Dtype dtype = Dtype::float32;   // of queries and output
  Dtype stored = Dtype::float32;  // of keys and values: the same, or int8
  Tensor query;
  const Piece* pieces = nullptr;  // in key order, without gaps
  int64_t piece_count = 0;
  Bias bias;
  const float* sinks = nullptr;  // [query heads]
  float scale = 1.0f;
  float softcap = 0.0f;  // 0 for none
  Visibility visibility;

  // Either the output in the problem's dtype, or the partial in float32, contiguous.
  void* output = nullptr;
  int64_t output_stride[4] = {0, 0, 0, 0};
  float* peak = nullptr;
  float* total = nullptr;
  float* values = nullptr;

  bool reads = false;
  Reading reading;

  // Scores pass through a transform where a multiplication inside the exponential does not do.
  KEYWISE_INLINE bool transforms() const { return softcap > 0.0f || bias.data || !(scale > 0.0f); }
  // What a stored score is worth in nats, and in base 2.
  KEYWISE_INLINE float score_unit() const { return transforms() ? 1.0f : scale; }
  KEYWISE_INLINE float score_unit_base2() const { return score_unit() * 1.44269504088896340736f; }

  // Heaviest keys wanted per row.
  KEYWISE_INLINE int64_t top() const { return reads ? reading.top : 0; }
  KEYWISE_INLINE int64_t group() const { return query_heads / key_heads; }
  KEYWISE_INLINE int64_t value_width() const { return round_up(value_dim, kPad); }
};

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
  float* peak = nullptr;        // [rows]
  float* total = nullptr;       // [rows]
  float* moment = nullptr;      // [rows] sum of weight x (score - peak) in base 2, for the entropy
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
  float* peaks = nullptr;  // [rows] the row's peak when its weights were made
  // The runs of the reading that meet these keys, and the sums of their weights: [tiles, runs, kPad], lane r of a tile
  // is its row r.
  int64_t first_run = 0, runs = 0;
  float* run_sums = nullptr;
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
  bool dots_pairs;
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
  void (*add_columns)(const Problem&, const Task&, const State&, const Strip&, const Workspace&, double* sums,
                      float* mass);
  // For the benchmarks: operations done in registers alone, on pairs of bfloat16 where the target multiplies them
  // directly; and the sum of a buffer, read as fast as can be.
  double (*multiply_adds)(int64_t rounds, bool pairs);
  double (*add_up)(const float* data, int64_t count);
};

// dispatch.cpp: every target compiled in, best first, and why it cannot run here (empty: it can).
struct Candidate {
  const Target* target;
  const char* reason;
};
int candidates(const Candidate** list);

// Asked now and then on the calling thread; true stops the run.
using Interrupted = bool (*)();

// Runs a problem; the result does not depend on the number of threads. False when it was interrupted.
bool run(const Problem& problem, const Target& target, int threads, Interrupted interrupted);

}  // namespace keywise
