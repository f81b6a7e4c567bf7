#include "workspace.h"

#include <algorithm>
#include <new>
#include <utility>

namespace keywise {

AlignedMemory allocate_aligned(int64_t bytes) {
  constexpr int64_t kCacheLineBytes = 64;
  const int64_t rounded = checked_round_up(max(bytes, kCacheLineBytes), kCacheLineBytes);
  void* const memory = std::aligned_alloc(size_t(kCacheLineBytes), size_t(rounded));
  if (!memory) throw std::bad_alloc();
  return AlignedMemory(memory);
}

void add_state(BufferLayout& layout, State& state, const Problem& problem, int64_t rows) {
  layout.add(state.softmax, rows);
  layout.add(state.inverse, rows);
  layout.add(state.values, rows * problem.value_width());
  layout.add(state.top_scores, rows * problem.top_k());
  layout.add(state.top_keys, rows * problem.top_k());
}

void add_score_buffer(BufferLayout& layout, ScoreBuffer& buffer, int64_t rows, int64_t tile_rows) {
  layout.add(buffer.weights, buffer.block_count * rows * kBlockKeys);
  layout.add(buffer.begin, buffer.block_count * rows);
  layout.add(buffer.end, buffer.block_count * rows);
  layout.add(buffer.hides, buffer.block_count * rows);
  layout.add(buffer.running_max, rows);
  layout.add(buffer.range_sums, ceil_div(rows, tile_rows) * buffer.range_count * kPadFloats);
}

void add_workspace(BufferLayout& layout, Workspace& workspace, const Problem& problem, int64_t rows,
                   int64_t tile_rows, bool packs_keys) {
  const int64_t packed_keys = packs_keys ? kBlockKeys : 0;
  // Tiles store whole vectors, which reach behind the last query row.
  layout.add(workspace.queries, rows * round_up(problem.head_dim, kPadFloats) + kPadFloats);
  layout.add(workspace.keys, packed_keys * problem.head_dim);
  layout.add(workspace.values, packed_keys * problem.value_width());
  layout.add(workspace.tile_weights, kMaxTileRows * kBlockKeys);
  layout.add(workspace.lane_max, rows * kPadFloats);
  layout.add(workspace.lane_sums, rows * kPadFloats);
  layout.add(workspace.lane_moments, rows * kPadFloats);
  layout.add(workspace.block_row, kBlockKeys);
  layout.add(workspace.candidates, 2 * candidate_capacity(problem.top_k()));
  layout.add(workspace.candidate_keys, 2 * candidate_capacity(problem.top_k()));
  layout.add(workspace.rescale, rows);
  layout.add(workspace.visible, rows);
  layout.add(workspace.tile_visible, ceil_div(rows, tile_rows));
}

void add_packed_head(BufferLayout& layout, PackedHead& packed, const Problem& problem, bool pairs) {
  const int64_t blocks = ceil_div(problem.keys, kBlockKeys);
  const int64_t elements = pairs ? 2 : 1;  // of a 32-bit lane
  const int64_t keys = blocks * kBlockKeys;
  layout.add(packed.keys, checked_multiply(keys, ceil_div(problem.head_dim, elements)));
  layout.add(packed.values, checked_multiply(keys, problem.value_width()) / elements);
  layout.add(packed.finite, blocks);
}

ScoreBuffer make_score_buffer(const Problem& problem, int64_t first_key, int64_t key_count,
                              bool keeps_weights) {
  ScoreBuffer buffer;
  buffer.first_key = first_key;
  buffer.key_count = key_count;
  buffer.block_count = ceil_div(key_count, kBlockKeys);
  const Statistics& statistics = problem.statistics;
  if (!keeps_weights || !statistics.segment_mass) return buffer;
  const int64_t last_key = first_key + key_count;
  buffer.first_range = statistics.ranges_ended(first_key);
  int64_t last_range = statistics.ranges_ended(last_key);
  // A range that begins here and ends later counts too.
  if (last_range < statistics.segment_range_count &&
      statistics.segment_ranges[3 * last_range] < last_key)
    ++last_range;
  buffer.range_count = last_range - buffer.first_range;
  return buffer;
}

State skip_rows(const State& state, int64_t rows, const Problem& problem) {
  State rest = state;
  rest.softmax += rows;
  rest.inverse += rows;
  rest.values += rows * problem.value_width();
  rest.top_scores += rows * problem.top_k();
  rest.top_keys += rows * problem.top_k();
  return rest;
}

ScoreBuffer skip_rows(const ScoreBuffer& buffer, int64_t rows, int64_t tile_rows) {
  ScoreBuffer rest = buffer;
  rest.running_max += rows;
  rest.range_sums += rows / tile_rows * buffer.range_count * kPadFloats;
  return rest;
}

void* ScratchMemory::reserve(int64_t bytes) {
  if (bytes > bytes_) {
    memory_.reset();
    bytes_ = 0;
    memory_ = allocate_aligned(bytes);
    bytes_ = bytes;
  }
  return memory_.get();
}

ScratchMemory& task_scratch() {
  thread_local ScratchMemory memory;
  return memory;
}

namespace {

// Empty while a call has it.
ScratchMemory& kept_call_memory() {
  thread_local ScratchMemory memory;
  return memory;
}

}  // namespace

CallMemory::CallMemory(int64_t bytes) {
  if (bytes <= kMaxKeptBytes) std::swap(memory_, kept_call_memory());
  memory_.reserve(bytes);
}

CallMemory::~CallMemory() {
  if (memory_.bytes() <= kMaxKeptBytes && memory_.bytes() > kept_call_memory().bytes())
    std::swap(memory_, kept_call_memory());
}

}  // namespace keywise
