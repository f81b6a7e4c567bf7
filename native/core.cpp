// Splits a problem into fixed blocks of work, runs them on threads, merges in order. Every split follows sizes only,
// so the same bits come out on any number of threads.

#include "core.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "threads.h"

namespace keywise {
namespace {

// Query rows per task: many enough to pay for packing a block of keys, few enough that their state stays in L2.
constexpr int64_t kRows = 240;
constexpr int64_t kFewestRows = 48;
// Weights kept for the readings of one task should stay in L2.
constexpr int64_t kStripFloats = 512 * 1024 / sizeof(float);
// Few key heads with at most this many query rows each (decoding, a question after a document) are split by keys.
constexpr int64_t kSplitRows = 64;
constexpr int64_t kSplitKeys = 4 * kBlockKeys;
// Tasks to aim for, so that any usual number of cores has work to the end.
constexpr int64_t kTasks = 16;
// Below this many multiplications waking another thread costs more than it brings.
constexpr int64_t kSmallWork = 1 << 20;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) {
  void* memory = std::aligned_alloc(64, size_t(round_up(std::max<int64_t>(bytes, 64), 64)));
  if (!memory) throw std::bad_alloc();
  return Memory(memory);
}

// Counts bytes when it has no memory, hands out aligned pieces when it has.
class Carver {
 public:
  explicit Carver(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}
  template <typename T>
  void operator()(T*& piece, int64_t count) {
    if (memory_) piece = reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += round_up(count * int64_t(sizeof(T)), 64);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

void carve(Carver& carver, Workspace& workspace, const Problem& problem, int64_t rows) {
  carver(workspace.queries, rows * round_up(problem.head_dim, kPad));  // packed query rows
  carver(workspace.keys, kBlockKeys * problem.head_dim);               // one block of keys in panels
  carver(workspace.values, kBlockKeys * problem.value_width());        // one block of values
  carver(workspace.scores, kMaximumTileRows * kBlockKeys);             // one tile of scores, then weights
  carver(workspace.narrow, kMaximumTileRows * kBlockKeys / 2);         // its weights as pairs of bfloat16
  carver(workspace.line, kBlockKeys);                                  // one row of bias, or of key mass
  // Candidates of one row for its heaviest keys, and room to fill the last vector.
  carver(workspace.candidates, candidate_room(problem.top()) + kPad);
  carver(workspace.candidate_keys, candidate_room(problem.top()));
  carver(workspace.rescale, rows);               // per row, in finish its inverse denominator
  carver(workspace.spans, rows * kSpanNumbers);  // which keys each row sees
}

void carve(Carver& carver, State& state, const Problem& problem, int64_t rows) {
  carver(state.peak, rows);
  carver(state.total, rows);
  carver(state.moment, rows);
  carver(state.values, rows * problem.value_width());
  carver(state.top_scores, rows * problem.top());
  carver(state.top_keys, rows * problem.top());
}

void carve(Carver& carver, Strip& strip, const Piece& piece, int64_t rows) {
  strip.first_key = piece.first_key;
  strip.blocks = ceil_div(piece.keys, kBlockKeys);
  carver(strip.weights, strip.blocks * rows * kBlockKeys);
  carver(strip.peaks, strip.blocks * rows);
  carver(strip.begin, strip.blocks * rows);
  carver(strip.end, strip.blocks * rows);
}

// Scratch that a thread keeps between calls: fresh pages would cost more than a small attention.
void* scratch(int64_t bytes) {
  thread_local Memory memory;
  thread_local int64_t held = 0;
  if (bytes > held) {
    memory.reset();
    held = 0;
    memory = allocate(bytes);
    held = bytes;
  }
  return memory.get();
}

// Readings that need every weight once the whole row is known.
bool keeps_weights(const Problem& problem) {
  return problem.reads && (problem.reading.key_mass || problem.reading.segment_mass);
}

struct Run {
  const Problem& problem;
  const Target& target;
  int threads;
  Interrupted interrupted;

  int64_t heads() const { return problem.batch * problem.key_heads; }
  int64_t rows_per_head() const { return problem.queries * problem.group(); }

  bool each(int64_t count, const std::function<void(int64_t)>& work) const {
    const int64_t multiplications =
        problem.batch * problem.query_heads * problem.queries * problem.keys * (problem.head_dim + problem.value_dim);
    return parallel_for(count, multiplications < kSmallWork ? 1 : threads, work, interrupted);
  }

  // Some rows of a head against the keys of a piece; finish, which goes by the state alone, needs none.
  Task task_of(int64_t head, int64_t first_row, int64_t last_row, const Piece* piece = nullptr) const {
    return {head / problem.key_heads, head % problem.key_heads, first_row, last_row, piece};
  }

  float* mass_of(int64_t head) const { return problem.reading.key_mass + head * problem.group() * problem.keys; }

  bool by_rows() const;
  bool by_keys() const;
};

struct RowBlock {
  int64_t first, last;
  bool read;
};

// Cuts the rows of a head at the ends of the rows to be read, then into blocks.
std::vector<RowBlock> row_blocks(const Run& run) {
  const Problem& problem = run.problem;
  const int64_t rows = run.rows_per_head(), group = problem.group();
  const int64_t blocks_wanted = ceil_div(kTasks, std::max<int64_t>(run.heads(), 1));
  const int64_t even = std::clamp(round_up(ceil_div(rows, blocks_wanted), 12), kFewestRows, kRows);
  int64_t strip_keys = 0;
  for (int64_t i = 0; i < problem.piece_count; ++i) strip_keys += round_up(problem.pieces[i].keys, kBlockKeys);
  const int64_t strip_rows = kStripFloats / std::max(strip_keys, kBlockKeys) / 12 * 12;
  const int64_t read_from = problem.reads ? problem.reading.first_row * group : 0;
  const int64_t read_to = problem.reads ? problem.reading.last_row * group : 0;
  std::vector<RowBlock> blocks;
  const auto cut = [&](int64_t first, int64_t last, bool read) {
    const int64_t step = read && keeps_weights(problem) ? std::clamp(strip_rows, kFewestRows, even) : even;
    for (; first < last; first += step) blocks.push_back({first, std::min(first + step, last), read});
  };
  cut(0, read_from, false);
  cut(read_from, read_to, true);
  cut(read_to, rows, false);
  return blocks;
}

// Many rows per key head. A task is a lane: every lanes-th block of one head. Key mass is summed per lane and then over
// the lanes in order, so memory does not grow with the number of blocks.
bool Run::by_rows() const {
  const std::vector<RowBlock> blocks = row_blocks(*this);
  const bool masses = problem.reads && problem.reading.key_mass;
  const int64_t block_count = int64_t(blocks.size());
  const int64_t lanes = masses ? std::min(block_count, ceil_div(kTasks, std::max<int64_t>(heads(), 1))) : block_count;
  const int64_t columns = problem.group() * problem.keys;
  std::vector<double> lane_columns(masses ? size_t(heads() * lanes * columns) : 0);

  const bool whole = each(heads() * lanes, [&](int64_t index) {
    // Later rows see more keys under a causal mask: they go first.
    const int64_t head = index % heads(), lane = lanes - 1 - index / heads();
    for (int64_t number = lane; number < block_count; number += lanes) {
      const RowBlock& block = blocks[size_t(number)];
      const Task all_keys = task_of(head, block.first, block.last);
      const bool keep = block.read && keeps_weights(problem);
      Workspace workspace;
      State state;
      std::vector<Strip> strips(keep ? size_t(problem.piece_count) : 0);
      const auto carve_all = [&](Carver carver) {
        carve(carver, workspace, problem, all_keys.rows());
        carve(carver, state, problem, all_keys.rows());
        for (size_t i = 0; i < strips.size(); ++i) carve(carver, strips[i], problem.pieces[i], all_keys.rows());
        return carver.bytes();
      };
      carve_all(Carver(scratch(carve_all(Carver()))));
      for (int64_t i = 0; i < problem.piece_count; ++i) {
        Task task = task_of(head, block.first, block.last, problem.pieces + i);
        task.continues = i > 0;
        target.compute(problem, task, workspace, state, keep ? &strips[size_t(i)] : nullptr);
      }
      double* column = masses && keep ? lane_columns.data() + (head * lanes + lane) * columns : nullptr;
      target.finish(problem, all_keys, workspace, state, strips.data(), int64_t(strips.size()), column);
    }
  });
  if (!whole || !masses) return whole;
  return each(heads(), [&](int64_t head) {
    for (int64_t i = 0; i < columns; ++i) {
      double mass = 0;
      for (int64_t lane = 0; lane < lanes; ++lane) mass += lane_columns[size_t((head * lanes + lane) * columns + i)];
      mass_of(head)[i] = float(mass);
    }
  });
}

// Tokens first .. first + keys - 1 of a piece.
Piece part_of(const Problem& problem, const Piece& piece, int64_t first, int64_t keys) {
  Piece part = piece;
  for (Tensor* tensor : {&part.key, &part.value})
    tensor->data = static_cast<const char*>(tensor->data) + first * tensor->stride[2] * bytes_of(problem.dtype);
  part.first_key += first;
  part.keys = keys;
  return part;
}

// Few rows per key head: all of them against fixed chunks of every piece, then the partials merged in key order.
bool Run::by_keys() const {
  std::vector<Piece> chunks;
  for (const Piece* piece = problem.pieces; piece < problem.pieces + problem.piece_count; ++piece)
    for (int64_t done = 0; done < piece->keys; done += kSplitKeys)
      chunks.push_back(part_of(problem, *piece, done, std::min(kSplitKeys, piece->keys - done)));
  const int64_t rows = rows_per_head(), splits = int64_t(chunks.size());
  const bool keep = keeps_weights(problem);
  std::vector<State> states(size_t(heads() * splits));
  std::vector<Strip> strips(keep ? states.size() : 0);
  const auto carve_all = [&](Carver carver) {
    for (size_t i = 0; i < states.size(); ++i) {
      carve(carver, states[i], problem, rows);
      if (keep) carve(carver, strips[i], chunks[i % chunks.size()], rows);
    }
    return carver.bytes();
  };
  const Memory memory = allocate(carve_all(Carver()));
  carve_all(Carver(memory.get()));
  const auto workspace_here = [&] {
    Workspace workspace;
    Carver size;
    carve(size, workspace, problem, rows);
    Carver carver(scratch(size.bytes()));
    carve(carver, workspace, problem, rows);
    return workspace;
  };

  const bool whole = each(heads() * splits, [&](int64_t index) {
    const Task task = task_of(index / splits, 0, rows, &chunks[size_t(index % splits)]);
    target.compute(problem, task, workspace_here(), states[size_t(index)], keep ? &strips[size_t(index)] : nullptr);
  });
  if (!whole) return false;
  return each(heads(), [&](int64_t head) {
    State& merged = states[size_t(head * splits)];
    const Workspace workspace = workspace_here();
    for (int64_t split = 1; split < splits; ++split)
      target.merge(problem, workspace, rows, merged, states[size_t(head * splits + split)]);
    const int64_t columns = problem.group() * problem.keys;
    const bool masses = problem.reads && problem.reading.key_mass;
    std::vector<double> sums(masses ? size_t(columns) : 0);
    target.finish(problem, task_of(head, 0, rows), workspace, merged, keep ? &strips[size_t(head * splits)] : nullptr,
                  keep ? splits : 0, masses ? sums.data() : nullptr);
    for (size_t i = 0; i < sums.size(); ++i) mass_of(head)[i] = float(sums[i]);
  });
}

}  // namespace

bool run(const Problem& problem, const Target& target, int threads, Interrupted interrupted) {
  const Run run{problem, target, threads, interrupted};
  if (run.rows_per_head() == 0) {
    if (problem.reads && problem.reading.key_mass)
      std::fill_n(problem.reading.key_mass, problem.batch * problem.query_heads * problem.keys, 0.0f);
    return true;
  }
  const bool few_rows = run.rows_per_head() <= kSplitRows && run.heads() < kTasks;
  return few_rows && problem.keys > kSplitKeys ? run.by_keys() : run.by_rows();
}

}  // namespace keywise
