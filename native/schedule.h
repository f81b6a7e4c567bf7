// How a problem is cut into tasks. A schedule depends on sizes and mask rules only, never on the
// number of threads, so that results have the same bits on any number of them.
#pragma once

#include <cstdint>
#include <vector>

#include "problem.h"
#include "target.h"
#include "workspace.h"

namespace keywise {

// Consecutive keys of a problem.
struct Split {
  int64_t first_key = 0;
  int64_t key_count = 0;
};

// Consecutive query rows of a head that one task computes together, and the keys that some of them
// see.
struct QueryBlock {
  int64_t first_row = 0;
  int64_t last_row = 0;
  bool has_statistics = false;
  // In key order; one split without keys where the rows see none.
  std::vector<Split> splits;
};

// The same tasks for every head. There are two kinds of schedule:
// - by rows (many query rows): a task computes some query blocks of a head, each against all its
//   keys, split by split;
// - by keys (few query rows, many keys): a task computes all rows of a head against one split of
//   the keys, and the partials of a head are merged in key order.
struct Schedule {
  bool by_keys = false;
  int64_t tasks_per_head = 0;

  // By rows: task t of a head computes the query blocks t, t + tasks_per_head,
  // t + 2 x tasks_per_head, ...
  std::vector<QueryBlock> query_blocks;
  // By rows: keys and values of a head are packed once, split by split, for all its tasks.
  bool shares_packed_keys = false;

  // By keys: one per task. By rows: the splits in which shared keys are packed.
  std::vector<Split> splits;

  // Bytes that a head holds from its first task to its last: partials and scores (by keys), packed
  // keys (by rows).
  int64_t head_bytes = 0;
  // By rows: heads that run at once, by the caches; key mass is summed per task, so their number
  // decides bits.
  int64_t row_heads_at_once = 0;

  // Multiplications of the whole problem, reading of keys and values included.
  int64_t work = 0;
};

// What a task by keys leaves for the other tasks of its head.
struct SplitBuffers {
  State state;
  // Without memory where no statistics are wanted: the task then uses memory of its own.
  ScoreBuffer scores;
};
void add_split_buffers(BufferLayout& layout, SplitBuffers& buffers, const Problem& problem,
                       const Target& target, const Split& split);

Schedule make_schedule(const Problem& problem, const Target& target);

// Returns how many heads run at once. By keys, more threads run more heads; no bit depends on it
// there.
int64_t count_heads_at_once(const Schedule& schedule, const Problem& problem, int threads);

// Returns how many of `count` tasks with this work together are handed to a thread at a time:
// handing out each would take longer than some do.
int64_t count_tasks_per_handout(int64_t work, int64_t count);

}  // namespace keywise
