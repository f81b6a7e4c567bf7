// Runs a schedule, some heads at a time: first their tasks, then the steps that combine the results
// of tasks.

#include <algorithm>
#include <atomic>
#include <vector>

#include "checked.h"
#include "core.h"
#include "float_mode.h"
#include "integers.h"
#include "schedule.h"
#include "threads.h"
#include "tuning.h"
#include "workspace.h"

namespace keywise {
namespace {

// What every step of a call needs.
struct Context {
  const Problem& problem;
  const Target& target;
  const Schedule& schedule;
  const int threads;
  const Interrupted interrupted;
  std::atomic<unsigned>& ranges;  // bits of ValueRange of all rows

  int64_t rows_per_head() const { return problem.queries * problem.group(); }
  int64_t tile_rows() const { return target.tile_rows; }
  bool wants_key_mass() const { return problem.wants_statistics && problem.statistics.key_mass; }

  // [group, keys] of a key head.
  int64_t key_mass_size() const { return problem.group() * problem.keys; }
  float* key_mass(int64_t head) const {
    return problem.statistics.key_mass + head * key_mass_size();
  }

  // Without a split: for steps that use the state alone.
  Task make_task(int64_t head, int64_t first_row, int64_t last_row, const Split& split = {}) const {
    Task task;
    task.item = head / problem.key_heads;
    task.key_head = head % problem.key_heads;
    task.first_row = first_row;
    task.last_row = last_row;
    task.first_key = split.first_key;
    task.last_key = split.first_key + split.key_count;
    return task;
  }

  // Calls work(0) .. work(count - 1) on the threads; returns false after an interruption.
  template <typename Work>
  bool for_each(int64_t count, const Work& work) const {
    const int64_t per_handout = count_tasks_per_handout(schedule.work, count);
    const int useful_threads = schedule.work < kMinThreadedWork ? 1 : threads;
    const bool wakes = schedule.work >= kMinWakingWork;
    const auto run_handout = [&](int64_t number) {
      // Of every thread: a worker's mode may differ from the caller's.
      const DefaultFloatMode mode;
      const int64_t end = min(count, (number + 1) * per_handout);
      for (int64_t index = number * per_handout; index < end; ++index) work(index);
    };
    return parallel_for(ceil_div(count, per_handout), useful_threads, wakes, run_handout,
                        interrupted);
  }

  void write_results(const Task& task, const State& state,
                     const std::vector<ScoreBuffer>& buffers) const {
    const unsigned found =
        target.write_results(problem, task, state, buffers.data(), int64_t(buffers.size()));
    if (found != kInRange) ranges |= found;
  }
};

// Runs schedules by rows.
class RowTasks {
 public:
  RowTasks(const Context& context, int64_t heads_at_once) : context_(context) {
    if (context.wants_key_mass())
      key_mass_sums_.resize(size_t(checked_multiply(heads_at_once, context.schedule.tasks_per_head,
                                                    context.key_mass_size())));
    if (!context.schedule.shares_packed_keys) return;
    packed_.resize(size_t(heads_at_once));
    packed_memory_ = allocate_aligned(checked_multiply(heads_at_once, context.schedule.head_bytes));
    BufferLayout layout(packed_memory_.get());
    const bool pairs = context.target.has_bf16_dot && context.problem.allows_bf16_pairs();
    for (PackedHead& packed : packed_) add_packed_head(layout, packed, context.problem, pairs);
  }

  bool run(int64_t first_head, int64_t heads) {
    return pack_heads(first_head, heads) && compute(first_head, heads) &&
           sum_key_mass(first_head, heads);
  }

 private:
  bool pack_heads(int64_t first_head, int64_t heads) {
    if (!context_.schedule.shares_packed_keys) return true;
    const int64_t split_count = int64_t(context_.schedule.splits.size());
    return context_.for_each(heads * split_count, [&](int64_t index) {
      const int64_t head = index / split_count;
      const Split& split = context_.schedule.splits[size_t(index % split_count)];
      const Task task = context_.make_task(first_head + head, 0, context_.rows_per_head(), split);
      context_.target.pack_head(context_.problem, task, packed_[size_t(head)]);
    });
  }

  bool compute(int64_t first_head, int64_t heads) {
    const int64_t task_count = context_.schedule.tasks_per_head;
    const int64_t block_count = int64_t(context_.schedule.query_blocks.size());
    std::fill(key_mass_sums_.begin(), key_mass_sums_.end(), 0.0);
    return context_.for_each(heads * task_count, [&](int64_t index) {
      const int64_t head = index / task_count;
      // Later rows first: under a causal mask they see more keys, and a long task at the end would
      // leave the other threads idle.
      const int64_t task = task_count - 1 - index % task_count;
      for (int64_t number = task; number < block_count; number += task_count) {
        compute_block(first_head, head, task, context_.schedule.query_blocks[size_t(number)]);
      }
    });
  }

  // Computes the rows of a query block against all keys that they see, and writes their results.
  void compute_block(int64_t first_head, int64_t head, int64_t task_of_head,
                     const QueryBlock& block) {
    const Problem& problem = context_.problem;
    const Target& target = context_.target;
    const bool packs_keys = !context_.schedule.shares_packed_keys;
    const int64_t rows = block.last_row - block.first_row;
    Workspace workspace;
    State state;
    // Statistics need the weights of all splits, other rows only the scores of one.
    std::vector<ScoreBuffer> buffers(block.has_statistics ? block.splits.size() : 1);
    task_scratch().place([&](BufferLayout layout) {
      add_workspace(layout, workspace, problem, rows, context_.tile_rows(), packs_keys);
      add_state(layout, state, problem, rows);
      for (size_t i = 0; i < buffers.size(); ++i) {
        const Split& split = block.splits[i];
        buffers[i] =
            make_score_buffer(problem, split.first_key, split.key_count, block.has_statistics);
        add_score_buffer(layout, buffers[i], rows, context_.tile_rows());
      }
      return layout.bytes();
    });

    for (size_t i = 0; i < block.splits.size(); ++i) {
      Task task =
          context_.make_task(first_head + head, block.first_row, block.last_row, block.splits[i]);
      task.continues = i > 0;
      task.packed = packs_keys ? nullptr : &packed_[size_t(head)];
      ScoreBuffer& buffer = buffers[block.has_statistics ? i : 0];
      buffer.block_count = ceil_div(block.splits[i].key_count, kBlockKeys);
      target.forward(problem, task, workspace, state, buffer);
    }
    const Task all_keys = context_.make_task(first_head + head, block.first_row, block.last_row);
    context_.write_results(all_keys, state, buffers);
    if (!context_.wants_key_mass() || !block.has_statistics) return;
    for (const ScoreBuffer& buffer : buffers) {
      target.accumulate_key_mass(problem, all_keys, state, buffer, workspace,
                                 key_mass_sums(head, task_of_head), nullptr);
    }
  }

  // Sums in the order of the tasks, so that bits do not depend on which thread ran them.
  bool sum_key_mass(int64_t first_head, int64_t heads) {
    if (!context_.wants_key_mass()) return true;
    return context_.for_each(heads, [&](int64_t head) {
      float* const key_mass = context_.key_mass(first_head + head);
      for (int64_t i = 0; i < context_.key_mass_size(); ++i) {
        double sum = 0.0;
        for (int64_t task = 0; task < context_.schedule.tasks_per_head; ++task)
          sum += key_mass_sums(head, task)[i];
        key_mass[i] = float(sum);
      }
    });
  }

  double* key_mass_sums(int64_t head, int64_t task_of_head) {
    const int64_t task = head * context_.schedule.tasks_per_head + task_of_head;
    return key_mass_sums_.data() + task * context_.key_mass_size();
  }

  const Context& context_;
  std::vector<PackedHead> packed_;  // per head that runs at once
  AlignedMemory packed_memory_;
  std::vector<double> key_mass_sums_;  // [heads at once, tasks per head, group, keys]
};

// Runs schedules by keys.
class SplitTasks {
 public:
  SplitTasks(const Context& context, int64_t heads_at_once)
      : context_(context), memory_(checked_multiply(heads_at_once, context.schedule.head_bytes)) {
    BufferLayout layout(memory_.get());
    buffers_.resize(size_t(heads_at_once * context.schedule.tasks_per_head));
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const Split& split = context.schedule.splits[i % context.schedule.splits.size()];
      add_split_buffers(layout, buffers_[i], context.problem, context.target, split);
    }
  }

  bool run(int64_t first_head, int64_t heads) {
    return compute(first_head, heads) && merge(first_head, heads) &&
           write_key_mass(first_head, heads);
  }

 private:
  bool compute(int64_t first_head, int64_t heads) {
    const int64_t split_count = context_.schedule.tasks_per_head;
    return context_.for_each(heads * split_count, [&](int64_t index) {
      const Split& split = context_.schedule.splits[size_t(index % split_count)];
      const Task task =
          context_.make_task(first_head + index / split_count, 0, context_.rows_per_head(), split);
      const SplitBuffers& buffers = buffers_[size_t(index)];
      ScoreBuffer scores = buffers.scores;
      const bool keeps_scores = context_.problem.wants_statistics;
      const Workspace workspace = place_workspace(keeps_scores ? nullptr : &scores);
      context_.target.forward(context_.problem, task, workspace, buffers.state, scores);
    });
  }

  // Merges the partials of a head in key order, tile by tile, and writes the results of their rows.
  bool merge(int64_t first_head, int64_t heads) {
    const int64_t tiles_per_head = ceil_div(context_.rows_per_head(), context_.tile_rows());
    return context_.for_each(heads * tiles_per_head, [&](int64_t index) {
      const int64_t head = index / tiles_per_head;
      const int64_t first_row = index % tiles_per_head * context_.tile_rows();
      const int64_t last_row = min(first_row + context_.tile_rows(), context_.rows_per_head());
      merge_tile(first_head, head, first_row, last_row);
    });
  }

  void merge_tile(int64_t first_head, int64_t head, int64_t first_row, int64_t last_row) {
    const Problem& problem = context_.problem;
    const int64_t split_count = context_.schedule.tasks_per_head;
    const SplitBuffers* const splits = &buffers_[size_t(head * split_count)];
    const Workspace workspace = place_workspace(nullptr);
    const State merged = skip_rows(splits[0].state, first_row, problem);
    for (int64_t split = 1; split < split_count; ++split) {
      const State next = skip_rows(splits[split].state, first_row, problem);
      context_.target.merge(problem, workspace, last_row - first_row, merged, next);
    }
    std::vector<ScoreBuffer> scores;
    if (problem.wants_statistics) {
      for (int64_t split = 0; split < split_count; ++split)
        scores.push_back(skip_rows(splits[split].scores, first_row, context_.tile_rows()));
    }
    const Task task = context_.make_task(first_head + head, first_row, last_row);
    context_.write_results(task, merged, scores);
  }

  // No two tasks share keys, so every task writes its own columns.
  bool write_key_mass(int64_t first_head, int64_t heads) {
    if (!context_.wants_key_mass()) return true;
    const int64_t split_count = context_.schedule.tasks_per_head;
    return context_.for_each(heads * split_count, [&](int64_t index) {
      const int64_t head = index / split_count;
      const State& merged = buffers_[size_t(head * split_count)].state;
      const Task task = context_.make_task(first_head + head, 0, context_.rows_per_head());
      context_.target.accumulate_key_mass(context_.problem, task, merged,
                                          buffers_[size_t(index)].scores, place_workspace(nullptr),
                                          nullptr, context_.key_mass(first_head + head));
    });
  }

  // Places the workspace of a task of all rows, and its scores where nothing keeps them.
  Workspace place_workspace(ScoreBuffer* scores) const {
    Workspace workspace;
    task_scratch().place([&](BufferLayout layout) {
      add_workspace(layout, workspace, context_.problem, context_.rows_per_head(),
                    context_.tile_rows(), true);
      if (scores) add_score_buffer(layout, *scores, context_.rows_per_head(), context_.tile_rows());
      return layout.bytes();
    });
    return workspace;
  }

  const Context& context_;
  const CallMemory memory_;
  std::vector<SplitBuffers> buffers_;  // [heads at once, splits]
};

template <typename Tasks>
bool run_heads(const Context& context) {
  const int64_t heads = context.problem.batch * context.problem.key_heads;
  const int64_t heads_at_once =
      count_heads_at_once(context.schedule, context.problem, context.threads);
  Tasks tasks(context, heads_at_once);
  for (int64_t first_head = 0; first_head < heads; first_head += heads_at_once) {
    if (!tasks.run(first_head, min(heads_at_once, heads - first_head))) return false;
  }
  return true;
}

// Returns false when it was interrupted.
bool run_once(const Problem& problem, const Target& target, int threads, Interrupted interrupted,
              std::atomic<unsigned>& ranges) {
  const Schedule schedule = make_schedule(problem, target);
  const Context context{problem, target, schedule, threads, interrupted, ranges};
  return schedule.by_keys ? run_heads<SplitTasks>(context) : run_heads<RowTasks>(context);
}

bool has_tiny_values(const Problem& problem, const Target& target) {
  const DefaultFloatMode mode;
  for (int64_t head = 0; head < problem.batch * problem.key_heads; ++head) {
    Task task;
    task.item = head / problem.key_heads;
    task.key_head = head % problem.key_heads;
    task.last_key = problem.keys;
    if (target.has_tiny_values(problem, task)) return true;
  }
  return false;
}

// Computes results again whose weighted values left the range of float32, from values times a power
// of two. Returns false when it was interrupted.
bool repeat_out_of_range(const Problem& problem, const Target& target, int threads,
                         Interrupted interrupted, unsigned ranges) {
  // Sums of float16 stay in range.
  if (problem.stored_dtype == Dtype::float16) return true;
  Problem rescaled = problem;
  rescaled.wants_statistics = false;
  rescaled.query_lse = nullptr;
  std::atomic<unsigned> unused{0};
  if (ranges & kAboveRange) {
    // Of at most 2^31 values the sum fits, and some such sums together.
    rescaled.value_scale = 0x1p-40f;
    if (!run_once(rescaled, target, threads, interrupted, unused)) return false;
  }
  if ((ranges & kBelowRange) || ((ranges & kAllZero) && has_tiny_values(problem, target))) {
    rescaled.value_scale = 1.0f / kTinySize;
    if (!run_once(rescaled, target, threads, interrupted, unused)) return false;
  }
  return true;
}

}  // namespace

bool run(const Problem& given, const Target& target, int threads, Interrupted interrupted) {
  check_sizes(given);
  if (given.batch * given.key_heads == 0) return true;
  if (given.queries * given.group() == 0) {
    const Statistics& statistics = given.statistics;
    if (given.wants_statistics && statistics.key_mass)
      std::fill_n(statistics.key_mass, given.batch * given.query_heads * given.keys, 0.0f);
    return true;
  }
  const Problem problem = scale_queries(given);
  std::atomic<unsigned> ranges{kInRange};
  if (!run_once(problem, target, threads, interrupted, ranges)) return false;
  return repeat_out_of_range(problem, target, threads, interrupted, ranges);
}

}  // namespace keywise
