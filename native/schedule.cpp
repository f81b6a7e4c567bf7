#include "schedule.h"

#include <algorithm>

#include "integers.h"
#include "tuning.h"
#include "visible_keys.h"
#include "workspace.h"

namespace keywise {
namespace {

int64_t count_heads(const Problem& problem) { return problem.batch * problem.key_heads; }

int64_t count_rows_per_head(const Problem& problem) { return problem.queries * problem.group(); }

bool wants_key_mass(const Problem& problem) {
  return problem.wants_statistics && problem.statistics.key_mass;
}

int64_t estimate_work(const Problem& problem) {
  const int64_t numbers_per_key = problem.head_dim + problem.value_dim;
  const int64_t numbers = saturating_multiply(count_heads(problem) * problem.keys, numbers_per_key);
  return saturating_multiply(numbers, count_rows_per_head(problem) + kReadWork);
}

bool splits_keys(const Problem& problem) {
  const int64_t rows = count_rows_per_head(problem);
  const bool has_few_tasks = rows <= kMaxFewRows && count_heads(problem) < kMaxFewHeads;
  if (has_few_tasks && problem.keys > kSplitKeys) return true;
  if (rows > kMaxSplitRows || problem.keys < kMinManyKeys) return false;
  const int64_t weight_bytes =
      problem.wants_statistics ? rows * problem.keys * int64_t(sizeof(float)) : 0;
  return weight_bytes <= kMaxBytesAtOnce;
}

// Returns splits of at most `max_keys` keys; no keys make one empty split, so that every row gets a
// state.
std::vector<Split> split_keys(const Split& keys, int64_t max_keys) {
  std::vector<Split> splits;
  for (int64_t offset = 0; offset == 0 || offset < keys.key_count; offset += max_keys) {
    Split split;
    split.first_key = keys.first_key + offset;
    split.key_count = min(max_keys, keys.key_count - offset);
    splits.push_back(split);
  }
  return splits;
}

// Returns the keys that some of these rows see, in one batch item or another, widened to whole
// blocks of keys.
Split find_visible_blocks(const Problem& problem, int64_t first_row, int64_t last_row) {
  KeyRange visible;
  for (int64_t item = 0; item < problem.batch; ++item) {
    Task task;
    task.item = item;
    task.first_row = first_row;
    task.last_row = last_row;
    task.last_key = problem.keys;
    visible = join(visible, clip_to_block(find_visible_keys(problem, task), 0, problem.keys));
  }
  Split split;
  if (is_empty(visible)) return split;
  split.first_key = round_down(visible.begin, kBlockKeys);
  split.key_count = min(round_up(visible.end, kBlockKeys), problem.keys) - split.first_key;
  return split;
}

// Cuts rows into query blocks: the fewer keys they see, the more rows of scores fit the caches.
class QueryBlockBuilder {
 public:
  explicit QueryBlockBuilder(const Problem& problem) : problem_(problem) {
    const int64_t rows = count_rows_per_head(problem);
    const int64_t target_blocks = ceil_div(kMinTasks, max(count_heads(problem), 1));
    const int64_t block_count = std::clamp<int64_t>(rows / kMinBlockRows, 1, target_blocks);
    max_rows_ = min(round_up(ceil_div(rows, block_count), kBlockRowStep), kMaxBlockRows);
  }

  void add_rows(int64_t first_row, int64_t last_row, bool has_statistics) {
    while (first_row < last_row) {
      const Split candidate =
          find_visible_blocks(problem_, first_row, min(first_row + max_rows_, last_row));
      // Without statistics, scores of the next split overwrite those of the last.
      const int64_t stored_keys =
          has_statistics ? candidate.key_count : min(candidate.key_count, kScoreBufferKeys);
      QueryBlock block;
      block.first_row = first_row;
      block.last_row = min(first_row + count_rows_that_fit(stored_keys), last_row);
      block.has_statistics = has_statistics;
      block.splits = split_keys(find_visible_blocks(problem_, block.first_row, block.last_row),
                                kScoreBufferKeys);
      first_row = block.last_row;
      blocks_.push_back(std::move(block));
    }
  }

  std::vector<QueryBlock> take_blocks() { return std::move(blocks_); }

 private:
  int64_t count_rows_that_fit(int64_t stored_keys) const {
    const int64_t fitting_rows = kMaxBufferFloats / max(stored_keys, kBlockKeys);
    return std::clamp(round_down(fitting_rows, kBlockRowStep), kMinBufferRows, max_rows_);
  }

  const Problem& problem_;
  int64_t max_rows_ = 0;
  std::vector<QueryBlock> blocks_;
};

// Blocks end where the rows with statistics begin and end: only these keep their weights.
std::vector<QueryBlock> make_query_blocks(const Problem& problem) {
  int64_t statistics_begin = 0;
  int64_t statistics_end = 0;
  if (problem.wants_statistics) {
    statistics_begin = problem.statistics.first_query * problem.group();
    statistics_end = problem.statistics.last_query * problem.group();
  }
  QueryBlockBuilder builder(problem);
  builder.add_rows(0, statistics_begin, false);
  builder.add_rows(statistics_begin, statistics_end, true);
  builder.add_rows(statistics_end, count_rows_per_head(problem), false);
  return builder.take_blocks();
}

int64_t count_row_heads_at_once(const Problem& problem, const Schedule& schedule) {
  const int64_t heads = count_heads(problem);
  if (!schedule.shares_packed_keys) return heads;
  const int64_t block_count = int64_t(schedule.query_blocks.size());
  const int64_t numbers = problem.keys * (problem.head_dim + problem.value_dim);
  // At least 1, because it divides below.
  const int64_t input_bytes = numbers * bytes_of(problem.dtype) + 1;
  const int64_t fitting_heads =
      min(ceil_div(kMaxTasksAtOnce, block_count), kMaxBytesAtOnce / input_bytes);
  int64_t heads_at_once = min(max(fitting_heads, ceil_div(kMinTasks, block_count)), heads);
  if (wants_key_mass(problem)) {
    // Threads share a power of two of tasks evenly.
    while (heads_at_once & (heads_at_once - 1)) --heads_at_once;
  }
  return heads_at_once;
}

void schedule_by_rows(const Problem& problem, const Target& target, Schedule& schedule) {
  schedule.query_blocks = make_query_blocks(problem);
  const int64_t block_count = int64_t(schedule.query_blocks.size());
  schedule.shares_packed_keys = block_count >= kMinSharingBlocks;
  schedule.row_heads_at_once = count_row_heads_at_once(problem, schedule);
  schedule.tasks_per_head = block_count;
  if (wants_key_mass(problem)) {
    // Every task sums key mass for itself: few tasks keep memory from growing with the number of
    // query blocks.
    schedule.tasks_per_head = min(block_count, ceil_div(kMinTasks, schedule.row_heads_at_once));
  }
  if (schedule.shares_packed_keys) {
    schedule.splits = split_keys({0, problem.keys}, kScoreBufferKeys);
    BufferLayout layout;
    PackedHead packed;
    add_packed_head(layout, packed, problem, target.has_bf16_dot && problem.allows_bf16_pairs());
    schedule.head_bytes = layout.bytes();
  }
}

void schedule_by_keys(const Problem& problem, const Target& target, Schedule& schedule) {
  schedule.by_keys = true;
  schedule.splits = split_keys({0, problem.keys}, kSplitKeys);
  schedule.tasks_per_head = int64_t(schedule.splits.size());
  BufferLayout layout;
  for (const Split& split : schedule.splits) {
    SplitBuffers buffers;
    add_split_buffers(layout, buffers, problem, target, split);
  }
  schedule.head_bytes = layout.bytes();
}

}  // namespace

void add_split_buffers(BufferLayout& layout, SplitBuffers& buffers, const Problem& problem,
                       const Target& target, const Split& split) {
  const int64_t rows = count_rows_per_head(problem);
  const bool keeps_weights = problem.wants_statistics;
  buffers.scores = make_score_buffer(problem, split.first_key, split.key_count, keeps_weights);
  add_state(layout, buffers.state, problem, rows);
  if (keeps_weights) add_score_buffer(layout, buffers.scores, rows, target.tile_rows);
}

Schedule make_schedule(const Problem& problem, const Target& target) {
  Schedule schedule;
  schedule.work = estimate_work(problem);
  if (splits_keys(problem)) {
    schedule_by_keys(problem, target, schedule);
  } else {
    schedule_by_rows(problem, target, schedule);
  }
  return schedule;
}

int64_t count_heads_at_once(const Schedule& schedule, const Problem& problem, int threads) {
  if (!schedule.by_keys) return schedule.row_heads_at_once;
  const int64_t fitting_heads = threads * kWaitingBytesPerThread / schedule.head_bytes;
  const int64_t sufficient_heads = ceil_div(kMinTasksPerThread * threads, schedule.tasks_per_head);
  return min(max(fitting_heads, sufficient_heads), count_heads(problem));
}

int64_t count_tasks_per_handout(int64_t work, int64_t count) {
  const int64_t handout_count =
      std::clamp<int64_t>(work / kMinHandedOutWork, min(kMinTasks, count), count);
  return ceil_div(count, handout_count);
}

}  // namespace keywise
