// Runs a backward pass, some heads at a time: rows are packed, tasks compute sums of gradients, and
// the sums of the tasks of a head are added in order and written.

#include "backward.h"

#include <algorithm>
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

// How a backward pass is cut into tasks: each head into splits of its keys and, where there are few
// other tasks, of its rows. Splits depend on sizes only, so results have the same bits on any
// number of threads; the number of heads that run at once decides no bit.
struct BackwardSchedule {
  int64_t key_splits = 1;
  int64_t split_keys = 0;  // a multiple of a block
  int64_t row_splits = 1;
  int64_t split_rows = 0;  // a multiple of a chunk
  int64_t heads_at_once = 1;
  int64_t head_bytes = 0;
  int64_t work = 0;

  int64_t tasks_per_head() const { return key_splits * row_splits; }
};

// Buffers of a head from its first task to its last.
struct HeadBuffers {
  GradientRows rows;
  std::vector<float*> query_sums;  // per split of keys
  std::vector<float*> key_sums;    // per split of rows
  std::vector<float*> value_sums;
  std::vector<float*> bias_sums;  // per task, where a bias has no element per query and key
};

int64_t rows_per_head(const Problem& problem) { return problem.queries * problem.group(); }

int64_t count_chunks(const Problem& problem) {
  return ceil_div(rows_per_head(problem), kGradientChunkRows);
}

// Returns whether a bias has an element per query and key: tasks then add to its gradient itself.
bool is_dense(const BackwardProblem& backward) {
  return backward.bias_gradient && backward.bias_gradient_stride[2] &&
         backward.bias_gradient_stride[3];
}

// Returns whether heads add to the same elements of a dense gradient: they must run one by one.
bool shares_bias(const BackwardProblem& backward) {
  const Problem& problem = backward.forward;
  const int64_t* const stride = backward.bias_gradient_stride;
  return is_dense(backward) &&
         ((problem.batch > 1 && !stride[0]) || (problem.key_heads > 1 && !stride[1]));
}

// Returns the sums of a task for a bias without an element per query and key.
int64_t count_bias_sums(const BackwardProblem& backward, int64_t split_keys) {
  if (!backward.bias_gradient || is_dense(backward)) return 0;
  const int64_t* const stride = backward.bias_gradient_stride;
  const int64_t heads = stride[1] ? backward.forward.group() : 1;
  int64_t per_head = 1;
  if (stride[2]) per_head = backward.forward.queries;
  if (stride[3]) per_head = split_keys;
  return checked_multiply(heads, per_head);
}

int64_t add_head(BufferLayout& layout, HeadBuffers& head, const BackwardProblem& backward,
                 const Target& target, const BackwardSchedule& schedule) {
  const Problem& problem = backward.forward;
  const int64_t rows = rows_per_head(problem);
  const int64_t chunks = count_chunks(problem);
  GradientRows& packed = head.rows;
  layout.add(packed.queries, checked_multiply(chunks, packed_chunk_floats(problem.head_dim)));
  layout.add(packed.output_gradients,
             checked_multiply(chunks, packed_chunk_floats(problem.value_dim)));
  layout.add(packed.query_rows, checked_multiply(rows, key_width(problem)));
  layout.add(packed.gradient_rows, checked_multiply(rows, problem.value_width()));
  for (float** const terms : {&packed.lse, &packed.lse_rest, &packed.shift,
                              &packed.entropy_gradient, &packed.query_weight})
    layout.add(*terms, rows);
  layout.add(packed.visible, rows);
  layout.add(packed.tile_visible, ceil_div(rows, target.tile_rows) + chunks);
  layout.add(packed.finite, ceil_div(rows, kGradientBlockRows));
  layout.add(packed.sink_sums, chunks * problem.group());
  const auto add_sums = [&](std::vector<float*>& sums, bool wanted, int64_t count, int64_t size) {
    sums.assign(wanted ? size_t(count) : 0, nullptr);
    for (float*& each : sums) layout.add(each, size);
  };
  add_sums(head.query_sums, backward.query_gradient, schedule.key_splits,
           checked_multiply(rows, key_width(problem)));
  add_sums(head.key_sums, backward.key_gradient, schedule.row_splits,
           checked_multiply(problem.keys, key_width(problem)));
  add_sums(head.value_sums, backward.value_gradient, schedule.row_splits,
           checked_multiply(problem.keys, problem.value_width()));
  const int64_t bias_sums = count_bias_sums(backward, schedule.split_keys);
  add_sums(head.bias_sums, bias_sums > 0, schedule.tasks_per_head(), bias_sums);
  return layout.bytes();
}

int64_t add_workspace(BufferLayout layout, GradientWorkspace& workspace, const Problem& problem) {
  layout.add(workspace.key_panels, checked_multiply(kBlockKeys, problem.head_dim));
  layout.add(workspace.value_panels, checked_multiply(kBlockKeys, problem.value_dim));
  layout.add(workspace.key_rows, checked_multiply(kBlockKeys, key_width(problem)));
  layout.add(workspace.weights, kGradientBlockRows * kBlockKeys);
  layout.add(workspace.scores, kGradientBlockRows * kBlockKeys);
  layout.add(workspace.slopes, kMaxTileRows * kBlockKeys);
  layout.add(workspace.bias_row, kBlockKeys);
  layout.add(workspace.added_row, kBlockKeys);
  layout.add(workspace.dropout_row, kBlockKeys);
  layout.add(workspace.tile_keys, kGradientBlockRows);
  return layout.bytes();
}

BackwardSchedule make_backward_schedule(const BackwardProblem& backward, const Target& target,
                                        int threads) {
  const Problem& problem = backward.forward;
  BackwardSchedule schedule;
  const int64_t heads = problem.batch * problem.key_heads;
  const int64_t rows = rows_per_head(problem);
  const int64_t blocks = ceil_div(problem.keys, kBlockKeys);
  const bool one_by_one = shares_bias(backward);
  const int64_t heads_in_flight = one_by_one ? 1 : heads;
  const int64_t wanted_splits = ceil_div(kMinGradientTasks, heads_in_flight);
  const int64_t split_blocks = ceil_div(blocks, std::clamp<int64_t>(wanted_splits, 1, blocks));
  schedule.split_keys = split_blocks * kBlockKeys;
  schedule.key_splits = ceil_div(blocks, split_blocks);
  const int64_t wanted_row_splits = ceil_div(kMinTasks, heads_in_flight * schedule.key_splits);
  const int64_t max_row_splits = max(rows / kMinGradientSplitRows, 1);
  schedule.split_rows =
      round_up(ceil_div(rows, min(wanted_row_splits, max_row_splits)), kGradientChunkRows);
  schedule.row_splits = ceil_div(rows, schedule.split_rows);
  HeadBuffers head;
  BufferLayout layout;
  schedule.head_bytes = add_head(layout, head, backward, target, schedule);
  const int64_t sufficient_heads =
      ceil_div(kGradientTasksPerThread * threads, schedule.tasks_per_head());
  const int64_t fitting_heads = kGradientBytesPerThread * threads / schedule.head_bytes;
  schedule.heads_at_once = one_by_one ? 1 : min(max(fitting_heads, sufficient_heads), heads);
  const int64_t numbers =
      saturating_multiply(heads * problem.keys, problem.head_dim + problem.value_dim);
  schedule.work = saturating_multiply(saturating_multiply(numbers, rows), 3);
  return schedule;
}

// Runs the steps of a backward pass.
class BackwardTasks {
 public:
  BackwardTasks(const BackwardProblem& backward, const Target& target,
                const BackwardSchedule& schedule, int threads, Interrupted interrupted)
      : backward_(backward),
        problem_(backward.forward),
        target_(target),
        schedule_(schedule),
        threads_(threads),
        interrupted_(interrupted),
        memory_(checked_multiply(schedule.heads_at_once, schedule.head_bytes)) {
    BufferLayout layout(memory_.get());
    heads_.resize(size_t(schedule.heads_at_once));
    for (HeadBuffers& head : heads_) add_head(layout, head, backward, target, schedule);
    if (backward.sinks_gradient) sinks_.assign(size_t(problem_.query_heads), 0.0);
  }

  bool run(int64_t first_head, int64_t heads) {
    const bool finished =
        schedule_.tasks_per_head() == 1
            ? run_whole(first_head, heads)
            : prepare(first_head, heads) && compute(first_head, heads) && write(first_head, heads);
    if (!finished) return false;
    for (int64_t head = 0; head < heads; ++head) {
      add_bias_sums(first_head + head, heads_[size_t(head)]);
      add_sink_sums(first_head + head, heads_[size_t(head)]);
    }
    return true;
  }

  void write_sinks() const {
    for (size_t head = 0; head < sinks_.size(); ++head)
      backward_.sinks_gradient[head] = float(sinks_[head]);
  }

 private:
  template <typename Work>
  bool for_each(int64_t count, const Work& work) const {
    const int64_t per_handout = count_tasks_per_handout(schedule_.work, count);
    const int useful_threads = schedule_.work < kMinThreadedWork ? 1 : threads_;
    const bool wakes = schedule_.work >= kMinWakingWork;
    const auto run_handout = [&](int64_t number) {
      const DefaultFloatMode mode;
      const int64_t end = min(count, (number + 1) * per_handout);
      for (int64_t index = number * per_handout; index < end; ++index) work(index);
    };
    return parallel_for(ceil_div(count, per_handout), useful_threads, wakes, run_handout,
                        interrupted_);
  }

  Task make_task(int64_t head, int64_t first_row, int64_t last_row, int64_t first_key,
                 int64_t last_key) const {
    Task task;
    task.item = head / problem_.key_heads;
    task.key_head = head % problem_.key_heads;
    task.first_row = first_row;
    task.last_row = last_row;
    task.first_key = first_key;
    task.last_key = last_key;
    return task;
  }

  Task make_chunk_task(int64_t head, int64_t chunk) const {
    const int64_t first_row = chunk * kGradientChunkRows;
    const int64_t last_row = min(first_row + kGradientChunkRows, rows_per_head(problem_));
    return make_task(head, first_row, last_row, 0, problem_.keys);
  }

  GradientWorkspace place_workspace() const {
    GradientWorkspace workspace;
    task_scratch().place(
        [&](BufferLayout layout) { return add_workspace(layout, workspace, problem_); });
    return workspace;
  }

  // Heads of one task each: all steps of a head follow each other in one thread, so that what one
  // writes is still in the thread's caches when the next reads it.
  bool run_whole(int64_t first_head, int64_t heads) const {
    return for_each(heads, [&](int64_t number) {
      const int64_t head = first_head + number;
      const HeadBuffers& buffers = heads_[size_t(number)];
      for (int64_t chunk = 0; chunk < count_chunks(problem_); ++chunk)
        prepare_chunk(head, buffers, chunk);
      compute_task(head, buffers, 0, 0);
      for (int64_t chunk = 0; chunk < count_chunks(problem_); ++chunk)
        write_queries(head, buffers, chunk);
      write_keys(head, buffers, 0);
    });
  }

  bool prepare(int64_t first_head, int64_t heads) const {
    const int64_t chunks = count_chunks(problem_);
    return for_each(heads * chunks, [&](int64_t index) {
      const int64_t head = index / chunks;
      prepare_chunk(first_head + head, heads_[size_t(head)], index % chunks);
    });
  }

  void prepare_chunk(int64_t head, const HeadBuffers& buffers, int64_t chunk) const {
    target_.prepare_gradient_rows(backward_, make_chunk_task(head, chunk), buffers.rows,
                                  place_workspace());
  }

  bool compute(int64_t first_head, int64_t heads) const {
    const int64_t task_count = schedule_.tasks_per_head();
    return for_each(heads * task_count, [&](int64_t index) {
      // Splits of earlier keys first: under a causal mask more rows see them, and a long task at
      // the end would leave the other threads idle.
      const int64_t task = index / heads;
      compute_task(first_head + index % heads, heads_[size_t(index % heads)],
                   task / schedule_.row_splits, task % schedule_.row_splits);
    });
  }

  void compute_task(int64_t head, const HeadBuffers& buffers, int64_t key_split,
                    int64_t row_split) const {
    const int64_t first_row = row_split * schedule_.split_rows;
    const int64_t first_key = key_split * schedule_.split_keys;
    const Task task =
        make_task(head, first_row, min(first_row + schedule_.split_rows, rows_per_head(problem_)),
                  first_key, min(first_key + schedule_.split_keys, problem_.keys));
    GradientSums sums;
    if (backward_.query_gradient) sums.queries = buffers.query_sums[size_t(key_split)];
    if (backward_.key_gradient) sums.keys = buffers.key_sums[size_t(row_split)];
    if (backward_.value_gradient) sums.values = buffers.value_sums[size_t(row_split)];
    if (backward_.bias_gradient)
      sums.bias = make_bias_sums(task, buffers, key_split * schedule_.row_splits + row_split);
    target_.add_gradients(backward_, task, buffers.rows, place_workspace(), sums);
  }

  BiasSums make_bias_sums(const Task& task, const HeadBuffers& buffers, int64_t number) const {
    const int64_t* const stride = backward_.bias_gradient_stride;
    BiasSums bias;
    if (is_dense(backward_)) {
      bias.sums = backward_.bias_gradient + task.item * stride[0] +
                  task.key_head * problem_.group() * stride[1];
      bias.head_stride = stride[1];
      bias.query_stride = stride[2];
      bias.key_stride = 1;
      return bias;
    }
    const int64_t size = count_bias_sums(backward_, schedule_.split_keys);
    bias.sums = buffers.bias_sums[size_t(number)];
    std::fill_n(bias.sums, size, 0.0f);
    bias.head_stride = stride[1] ? size / problem_.group() : 0;
    bias.query_stride = stride[2] ? 1 : 0;
    bias.key_stride = stride[3] ? 1 : 0;
    bias.first_key = stride[3] ? task.first_key : 0;
    return bias;
  }

  bool write(int64_t first_head, int64_t heads) const {
    const int64_t chunks = count_chunks(problem_);
    const bool finished = for_each(heads * chunks, [&](int64_t index) {
      const int64_t head = index / chunks;
      write_queries(first_head + head, heads_[size_t(head)], index % chunks);
    });
    if (!finished) return false;
    return for_each(heads * schedule_.key_splits, [&](int64_t index) {
      const int64_t head = index / schedule_.key_splits;
      write_keys(first_head + head, heads_[size_t(head)], index % schedule_.key_splits);
    });
  }

  void write_queries(int64_t head, const HeadBuffers& buffers, int64_t chunk) const {
    if (backward_.query_gradient)
      target_.write_query_gradients(backward_, make_chunk_task(head, chunk),
                                    buffers.query_sums.data(), schedule_.key_splits);
  }

  void write_keys(int64_t head, const HeadBuffers& buffers, int64_t key_split) const {
    const int64_t first_key = key_split * schedule_.split_keys;
    const Task task = make_task(head, 0, rows_per_head(problem_), first_key,
                                min(first_key + schedule_.split_keys, problem_.keys));
    target_.write_key_gradients(backward_, task, buffers.key_sums.data(), buffers.value_sums.data(),
                                schedule_.row_splits);
  }

  // Adds the sums of a head's tasks in order to the gradient of a bias without an element per query
  // and key.
  void add_bias_sums(int64_t head, const HeadBuffers& buffers) const {
    if (buffers.bias_sums.empty()) return;
    const int64_t* const stride = backward_.bias_gradient_stride;
    const int64_t item = head / problem_.key_heads;
    const int64_t first_query_head = head % problem_.key_heads * problem_.group();
    const int64_t size = count_bias_sums(backward_, schedule_.split_keys);
    const int64_t summed_heads = stride[1] ? problem_.group() : 1;
    const int64_t per_head = size / summed_heads;
    for (size_t task = 0; task < buffers.bias_sums.size(); ++task) {
      const int64_t first_key = int64_t(task) / schedule_.row_splits * schedule_.split_keys;
      // Of keys behind the last there are no gradients.
      const int64_t count = stride[3] ? min(per_head, problem_.keys - first_key) : per_head;
      for (int64_t h = 0; h < summed_heads; ++h) {
        float* const gradient = backward_.bias_gradient + item * stride[0] +
                                (first_query_head + h) * stride[1] + (stride[3] ? first_key : 0);
        const float* const sums = buffers.bias_sums[task] + h * per_head;
        for (int64_t i = 0; i < count; ++i) gradient[i] += sums[i];
      }
    }
  }

  void add_sink_sums(int64_t head, const HeadBuffers& buffers) {
    if (sinks_.empty()) return;
    const int64_t group = problem_.group();
    for (int64_t chunk = 0; chunk < count_chunks(problem_); ++chunk)
      for (int64_t h = 0; h < group; ++h)
        sinks_[size_t(head % problem_.key_heads * group + h)] +=
            buffers.rows.sink_sums[chunk * group + h];
  }

  const BackwardProblem& backward_;
  const Problem& problem_;
  const Target& target_;
  const BackwardSchedule& schedule_;
  const int threads_;
  const Interrupted interrupted_;
  const CallMemory memory_;
  std::vector<HeadBuffers> heads_;  // of those that run at once
  std::vector<double> sinks_;       // [query heads]
};

int64_t count_bias_elements(const BackwardProblem& backward) {
  const Problem& problem = backward.forward;
  const int64_t sizes[] = {problem.batch, problem.query_heads, problem.queries, problem.keys};
  int64_t count = 1;
  for (int axis = 0; axis < 4; ++axis)
    if (backward.bias_gradient_stride[axis]) count = checked_multiply(count, sizes[axis]);
  return count;
}

void clear_gradients(const BackwardProblem& backward) {
  const Problem& problem = backward.forward;
  const int64_t queries = problem.batch * problem.query_heads * problem.queries;
  const int64_t keys = problem.batch * problem.key_heads * problem.keys;
  const auto clear = [&](void* gradient, int64_t rows, int64_t dim) {
    if (gradient)
      std::fill_n(static_cast<char*>(gradient), rows * dim * bytes_of(problem.dtype), char(0));
  };
  clear(backward.query_gradient, queries, problem.head_dim);
  clear(backward.key_gradient, keys, problem.head_dim);
  clear(backward.value_gradient, keys, problem.value_dim);
  if (backward.sinks_gradient) std::fill_n(backward.sinks_gradient, problem.query_heads, 0.0f);
}

}  // namespace

bool run_backward(const BackwardProblem& given, const Target& target, int threads,
                  Interrupted interrupted) {
  check_sizes(given.forward);
  const int64_t heads = given.forward.batch * given.forward.key_heads;
  if (given.bias_gradient) std::fill_n(given.bias_gradient, count_bias_elements(given), 0.0f);
  if (heads == 0 || given.forward.keys == 0 || rows_per_head(given.forward) == 0) {
    clear_gradients(given);
    return true;
  }
  BackwardProblem backward = given;
  backward.scale = given.forward.scale;
  backward.forward = scale_queries(given.forward);
  const BackwardSchedule schedule = make_backward_schedule(backward, target, threads);
  BackwardTasks tasks(backward, target, schedule, threads, interrupted);
  for (int64_t first = 0; first < heads; first += schedule.heads_at_once) {
    if (!tasks.run(first, min(schedule.heads_at_once, heads - first))) return false;
  }
  tasks.write_sinks();
  return true;
}

}  // namespace keywise
