// Splits a problem into fixed blocks of work, runs them on threads, merges in order. Every split follows sizes only,
// so the same bits come out on any number of threads.

#include "core.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "threads.h"
#include "visible_keys.h"
#include "workspace.h"

namespace keywise {
namespace {

// Query rows per task: many enough to pay for reading a block of keys, few enough that their state stays in L2.
constexpr int64_t kRows = 240;
constexpr int64_t kFewestRows = 24;
// The scores of a buffer should stay in L2, beside a block of keys and values; rows that are read keep the weights of all
// their keys.
constexpr int64_t kStripFloats = 384 * 1024 / sizeof(float);
constexpr int64_t kFewestRowsOfStrip = 12;
// Heads with at most this many query rows (decoding, a question after a document) are split by keys where these are many,
// unless the weights that wait for a reading are too many; and fewer heads with fewer rows, where there would be too little
// to share out.
constexpr int64_t kSplitRows = 192;
constexpr int64_t kManyKeys = 16 * kBlockKeys;
constexpr int64_t kFewRows = 64;
constexpr int64_t kFewHeads = 16;
constexpr int64_t kSplitKeys = 4 * kBlockKeys;
// Tasks to aim for, so that any usual number of cores has work to the end.
constexpr int64_t kTasks = 8;
// Tasks and bytes of a wave: heads whose keys are packed and used at the same time, or whose weights wait.
constexpr int64_t kWaveTasks = 64;
constexpr int64_t kWaveBytes = 16 << 20;
// Fewer blocks of rows than this pack the keys they share each for itself.
constexpr int64_t kFewestSharing = 5;
// Of heads that are split by keys, partials and weights that wait for the rest of their heads at the same time, for each
// thread: they should stay in L2. However large they are, there are two tasks for each thread.
constexpr int64_t kWaitingBytes = 512 << 10;
// Memory that a run may keep for the next one.
constexpr int64_t kKeptBytes = 8 << 20;
// Work is counted in multiplications; reading a number of a key or value takes as long as some.
constexpr int64_t kReadingWork = 8;
// Below this much work another thread costs more than it brings, below the other one waking it does.
constexpr int64_t kSmallWork = 1 << 18;
constexpr int64_t kWakingWork = 1 << 21;
// Less work than this is handed out together with more.
constexpr int64_t kSmallTask = 1 << 17;

struct Part {
  int64_t first_key = 0, keys = 0;
};

struct Run {
  const Problem& problem;
  const Target& target;
  int threads;
  Interrupted interrupted;

  int64_t heads() const { return problem.batch * problem.key_heads; }
  int64_t rows_per_head() const { return problem.queries * problem.group(); }

  // Calls work(0) .. work(count - 1), tiny ones in runs: handing each out would take longer than some do.
  template <typename Work>
  bool each(int64_t count, Work work) const {
    const int64_t numbers = problem.batch * problem.key_heads * problem.keys * (problem.head_dim + problem.value_dim);
    const int64_t in_all = numbers * (rows_per_head() + kReadingWork);
    const int64_t runs_wanted = std::clamp<int64_t>(in_all / kSmallTask, std::min(kTasks, count), count);
    const int64_t length = ceil_div(count, runs_wanted);
    const auto run = [&](int64_t number) {
      for (int64_t i = number * length; i < std::min(count, (number + 1) * length); ++i) work(i);
    };
    return parallel_for(ceil_div(count, length), in_all < kSmallWork ? 1 : threads, in_all >= kWakingWork,
                        run, interrupted);
  }

  // Some rows of a head against part of the keys; finish, which goes by the state alone, needs none.
  Task task_of(int64_t head, int64_t first_row, int64_t last_row, const Part& part = {}) const {
    return {head / problem.key_heads, head % problem.key_heads, first_row, last_row, part.first_key,
            part.first_key + part.keys};
  }

  float* mass_of(int64_t head) const { return problem.statistics.key_mass + head * problem.group() * problem.keys; }

  bool by_rows() const;
  bool by_keys() const;
};

struct RowBlock {
  int64_t first, last;
  bool read;
  Part keys;
};

// The keys that some of these rows see, in one item or another, in whole blocks.
Part keys_seen(const Run& run, int64_t first_row, int64_t last_row) {
  const Problem& problem = run.problem;
  KeyRange seen;
  for (int64_t item = 0; item < problem.batch; ++item) {
    const Task task = run.task_of(item * problem.key_heads, first_row, last_row, {0, problem.keys});
    seen = join(seen, clip_to_block(find_visible_keys(problem, task), 0, problem.keys));
  }
  const int64_t begin = round_down(seen.begin, kBlockKeys);
  return {begin, std::min(round_up(seen.end, kBlockKeys), problem.keys) - begin};
}

// Cuts the rows of a head at the ends of the rows to be read, then into blocks: the fewer keys they see, the more rows.
std::vector<RowBlock> row_blocks(const Run& run) {
  const Problem& problem = run.problem;
  const int64_t rows = run.rows_per_head(), group = problem.group();
  const int64_t blocks_wanted = ceil_div(kTasks, std::max<int64_t>(run.heads(), 1));
  const int64_t row_blocks = std::clamp<int64_t>(rows / kFewestRows, 1, blocks_wanted);
  const int64_t even = std::min(round_up(ceil_div(rows, row_blocks), 12), kRows);
  const auto rows_of_strips = [&](int64_t keys) {
    return std::clamp(kStripFloats / std::max(keys, kBlockKeys) / 12 * 12, kFewestRowsOfStrip, even);
  };
  const int64_t read_from = problem.wants_statistics ? problem.statistics.first_row * group : 0;
  const int64_t read_to = problem.wants_statistics ? problem.statistics.last_row * group : 0;
  std::vector<RowBlock> blocks;
  const auto cut = [&](int64_t first, int64_t last, bool read) {
    while (first < last) {
      const int64_t keys = keys_seen(run, first, std::min(first + even, last)).keys;
      const int64_t end = std::min(first + rows_of_strips(read ? keys : std::min(keys, kScoreBufferKeys)), last);
      blocks.push_back({first, end, read, keys_seen(run, first, end)});
      first = end;
    }
  };
  cut(0, read_from, false);
  cut(read_from, read_to, true);
  cut(read_to, rows, false);
  return blocks;
}

// Keys in parts of at most this many; no keys are one part.
std::vector<Part> parts_of(const Part& keys, int64_t most) {
  std::vector<Part> parts;
  for (int64_t first = 0; first == 0 || first < keys.keys; first += most)
    parts.push_back({keys.first_key + first, std::min(most, keys.keys - first)});
  return parts;
}

// The keys and values of the heads of a wave, packed once for all their rows.
class SharedKeys {
 public:
  SharedKeys(const Run& run, int64_t heads)
      : run_(run), parts_(parts_of({0, run.problem.keys}, kScoreBufferKeys)), packed_(size_t(heads)) {
    const Problem& problem = run.problem;
    const bool pairs = run.target.has_bf16_dot && problem.dtype == Dtype::bfloat16;
    const auto lay_out = [&](BufferLayout layout) {
      for (PackedHead& packed : packed_) add_packed_head(layout, packed, problem, pairs);
      return layout.bytes();
    };
    memory_ = allocate_aligned(lay_out(BufferLayout()));
    lay_out(BufferLayout(memory_.get()));
  }

  bool pack(int64_t first_head, int64_t heads) const {
    const int64_t parts = int64_t(parts_.size());
    return run_.each(heads * parts, [&](int64_t index) {
      const Task task = run_.task_of(first_head + index / parts, 0, run_.rows_per_head(), parts_[size_t(index % parts)]);
      run_.target.pack_head(run_.problem, task, packed_[size_t(index / parts)]);
    });
  }

  const PackedHead* of(int64_t head) const { return &packed_[size_t(head)]; }

 private:
  const Run& run_;
  const std::vector<Part> parts_;
  std::vector<PackedHead> packed_;
  AlignedMemory memory_;
};

// Many rows per key head, in waves of heads whose packed keys fit the caches. A task is a lane: every lanes-th block of
// rows of one head. Key mass is summed per lane and then over the lanes in order, so memory does not grow with the
// number of blocks.
bool Run::by_rows() const {
  const std::vector<RowBlock> blocks = row_blocks(*this);
  const bool masses = problem.wants_statistics && problem.statistics.key_mass;
  const int64_t block_count = int64_t(blocks.size());
  const bool shares = block_count >= kFewestSharing;
  const int64_t head_bytes = problem.keys * (problem.head_dim + problem.value_width()) * bytes_of(problem.dtype) + 1;
  const int64_t fitting = std::min(ceil_div(kWaveTasks, block_count), kWaveBytes / head_bytes);
  int64_t wave = shares ? std::min(std::max(fitting, ceil_div(kTasks, block_count)), heads()) : heads();
  // A power of two makes lanes in numbers that threads can share evenly.
  while (masses && shares && wave & (wave - 1)) --wave;
  const int64_t lanes = masses ? std::min(block_count, ceil_div(kTasks, wave)) : block_count;
  const int64_t columns = problem.group() * problem.keys;
  std::vector<double> lane_columns(masses ? size_t(wave * lanes * columns) : 0);
  std::optional<SharedKeys> shared;
  if (shares) shared.emplace(*this, wave);

  for (int64_t first_head = 0; first_head < heads(); first_head += wave) {
    const int64_t heads_here = std::min(wave, heads() - first_head);
    std::fill(lane_columns.begin(), lane_columns.end(), 0.0);
    if (shares && !shared->pack(first_head, heads_here)) return false;
    const bool whole = each(heads_here * lanes, [&](int64_t index) {
      // Of a head the later rows go first, which see more keys under a causal mask.
      const int64_t head = index / lanes, lane = lanes - 1 - index % lanes;
      for (int64_t number = lane; number < block_count; number += lanes) {
        const RowBlock& block = blocks[size_t(number)];
        const Task all_keys = task_of(first_head + head, block.first, block.last);
        const std::vector<Part> parts = parts_of(block.keys, kScoreBufferKeys);
        Workspace workspace;
        State state;
        std::vector<ScoreBuffer> strips(block.read ? parts.size() : 1);
        for (size_t i = 0; i < strips.size(); ++i)
          strips[i] = make_score_buffer(problem, parts[i].first_key, parts[i].keys, block.read);
        task_scratch().place([&](BufferLayout layout) {
          add_workspace(layout, workspace, problem, all_keys.rows(), target.tile_rows, !shares);
          add_state(layout, state, problem, all_keys.rows());
          for (ScoreBuffer& strip : strips) add_score_buffer(layout, strip, all_keys.rows(), target.tile_rows);
          return layout.bytes();
        });
        for (size_t i = 0; i < parts.size(); ++i) {
          Task task = task_of(first_head + head, block.first, block.last, parts[i]);
          task.continues = i > 0;
          task.packed = shares ? shared->of(head) : nullptr;
          ScoreBuffer& strip = strips[block.read ? i : 0];
          strip.block_count = ceil_div(parts[i].keys, kBlockKeys);
          target.forward(problem, task, workspace, state, strip);
        }
        target.write_results(problem, all_keys, state, strips.data(), int64_t(strips.size()));
        for (size_t i = 0; masses && block.read && i < strips.size(); ++i)
          target.accumulate_key_mass(problem, all_keys, state, strips[i], workspace,
                             lane_columns.data() + (head * lanes + lane) * columns, nullptr);
      }
    });
    if (!whole) return false;
    const bool summed = !masses || each(heads_here, [&](int64_t head) {
      for (int64_t i = 0; i < columns; ++i) {
        double mass = 0;
        for (int64_t lane = 0; lane < lanes; ++lane) mass += lane_columns[size_t((head * lanes + lane) * columns + i)];
        mass_of(first_head + head)[i] = float(mass);
      }
    });
    if (!summed) return false;
  }
  return true;
}

// Few rows per key head: all of them against fixed parts of the keys, then the partials merged in key order. Heads
// go in waves, as many at a time as the caches hold.
bool Run::by_keys() const {
  const std::vector<Part> parts = parts_of({0, problem.keys}, kSplitKeys);
  const int64_t rows = rows_per_head(), splits = int64_t(parts.size()), row_parts = ceil_div(rows, target.tile_rows);
  std::vector<State> states(static_cast<size_t>(splits));
  std::vector<ScoreBuffer> strips(problem.wants_statistics ? states.size() : 0);
  const auto lay_out = [&](BufferLayout layout) {
    for (size_t i = 0; i < states.size(); ++i) {
      add_state(layout, states[i], problem, rows);
      if (!problem.wants_statistics) continue;
      const Part& part = parts[i % parts.size()];
      strips[i] = make_score_buffer(problem, part.first_key, part.keys, true);
      add_score_buffer(layout, strips[i], rows, target.tile_rows);
    }
    return layout.bytes();
  };
  const int64_t head_bytes = lay_out(BufferLayout());
  const int64_t fitting = threads * kWaitingBytes / head_bytes, sharing = ceil_div(2 * threads, splits);
  const int64_t wave = std::min(std::max(fitting, sharing), heads());
  states.resize(size_t(wave * splits));
  strips.resize(problem.wants_statistics ? states.size() : 0);
  const AlignedMemory much = wave * head_bytes > kKeptBytes ? allocate_aligned(wave * head_bytes) : nullptr;
  lay_out(BufferLayout(much ? much.get() : call_scratch().reserve(wave * head_bytes)));
  // A strip that nobody reads is of no use after its task.
  const auto workspace_here = [&](ScoreBuffer* unread = nullptr) {
    Workspace workspace;
    task_scratch().place([&](BufferLayout layout) {
      add_workspace(layout, workspace, problem, rows, target.tile_rows, true);
      if (unread) add_score_buffer(layout, *unread, rows, target.tile_rows);
      return layout.bytes();
    });
    return workspace;
  };

  for (int64_t first_head = 0; first_head < heads(); first_head += wave) {
    const int64_t heads_here = std::min(wave, heads() - first_head);
    const bool whole = each(heads_here * splits, [&](int64_t index) {
      const Part& part = parts[size_t(index % splits)];
      ScoreBuffer unread = make_score_buffer(problem, part.first_key, part.keys, false);
      const Workspace workspace = workspace_here(problem.wants_statistics ? nullptr : &unread);
      target.forward(problem, task_of(first_head + index / splits, 0, rows, part), workspace, states[size_t(index)],
                     problem.wants_statistics ? strips[size_t(index)] : unread);
    });
    if (!whole) return false;
    const bool finished = each(heads_here * row_parts, [&](int64_t index) {
      const int64_t head = index / row_parts, first = index % row_parts * target.tile_rows;
      const int64_t last = std::min(first + target.tile_rows, rows);
      const State merged = skip_rows(states[size_t(head * splits)], first, problem);
      const Workspace workspace = workspace_here();
      for (int64_t split = 1; split < splits; ++split)
        target.merge(problem, workspace, last - first, merged,
                     skip_rows(states[size_t(head * splits + split)], first, problem));
      std::vector<ScoreBuffer> read;
      for (int64_t split = 0; problem.wants_statistics && split < splits; ++split)
        read.push_back(skip_rows(strips[size_t(head * splits + split)], first, target.tile_rows));
      target.write_results(problem, task_of(first_head + head, first, last), merged, read.data(), int64_t(read.size()));
    });
    if (!finished) return false;
    if (!problem.wants_statistics || !problem.statistics.key_mass) continue;
    const bool summed = each(heads_here * splits, [&](int64_t index) {
      const int64_t head = index / splits;
      target.accumulate_key_mass(problem, task_of(first_head + head, 0, rows), states[size_t(head * splits)],
                         strips[size_t(index)], workspace_here(), nullptr, mass_of(first_head + head));
    });
    if (!summed) return false;
  }
  return true;
}

}  // namespace

bool run(const Problem& problem, const Target& target, int threads, Interrupted interrupted) {
  const Run run{problem, target, threads, interrupted};
  if (run.heads() == 0) return true;
  if (run.rows_per_head() == 0) {
    if (problem.wants_statistics && problem.statistics.key_mass)
      std::fill_n(problem.statistics.key_mass, problem.batch * problem.query_heads * problem.keys, 0.0f);
    return true;
  }
  const bool few = run.rows_per_head() <= kFewRows && run.heads() < kFewHeads && problem.keys > kSplitKeys;
  const int64_t waiting = problem.wants_statistics ? run.rows_per_head() * problem.keys * int64_t(sizeof(float)) : 0;
  const bool long_and_few =
      run.rows_per_head() <= kSplitRows && problem.keys >= kManyKeys && waiting <= kWaveBytes;
  return few || long_and_few ? run.by_keys() : run.by_rows();
}

}  // namespace keywise
