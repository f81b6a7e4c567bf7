// The heaviest keys of rows.
//
// Inputs: scores in the score buffer, the largest score per lane, the state's list so far. Output:
// State::top_scores and State::top_keys, largest first, ties to the lower key. Scores are compared,
// never computed with. Tail rule: lists end in score -inf, key -1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"
#include "softmax_state.h"
#include "task_context.h"

namespace keywise::KEYWISE_TARGET {

// Selects the `top_k` largest of `count` candidates that are in key order. Every candidate's rank
// is counted, because a sort would wait for branches that cannot be predicted; all are stored by
// rank in the second half of their memory, for the same reason.
static void select_largest(float* candidates, int32_t* candidate_keys, int64_t count, int64_t top_k,
                           float* scores, int32_t* keys) {
  float* const ranked = candidates + candidate_capacity(top_k);
  int32_t* const ranked_keys = candidate_keys + candidate_capacity(top_k);
  constexpr unsigned kAllLanes = (1u << kLanes) - 1u;
  store(candidates + count, broadcast(-kInfinity));
  for (int64_t i = 0; i < count; ++i) {
    const Vec score = broadcast(candidates[i]);
    int64_t rank = 0;
    for (int64_t j = 0; j < count; j += kLanes) {
      const Vec others = load(candidates + j);
      // Lanes before this candidate precede it when they are equal, too.
      unsigned earlier = 0;
      if (i - j >= kLanes)
        earlier = kAllLanes;
      else if (i > j)
        earlier = (1u << (i - j)) - 1u;
      const unsigned preceding =
          (greater_mask(others, score) & ~earlier) | (~greater_mask(score, others) & earlier);
      rank += __builtin_popcount(preceding);
    }
    ranked[rank] = candidates[i];
    ranked_keys[rank] = candidate_keys[i];
  }
  const std::size_t found = std::size_t(min(count, top_k));
  __builtin_memcpy(scores, ranked, found * sizeof(float));
  __builtin_memcpy(keys, ranked_keys, found * sizeof(int32_t));
}

// Returns a score that at least `top_k` keys reach: the one of that rank among the largest of every
// lane; -inf where more keys are wanted than there are lanes.
static float find_lower_bound(int64_t top_k, Vec lane_max) {
  if (top_k > kLanes) return -kInfinity;
  float lanes[kLanes];
  store(lanes, lane_max);
  Vec larger = zero();  // how many lanes are larger than this one
  for (int i = 0; i < kLanes; ++i)
    larger = add(larger, if_less(lane_max, broadcast(lanes[i]), broadcast(1.0f), zero()));
  const Vec among_top = if_less(larger, broadcast(float(top_k)), lane_max, broadcast(kInfinity));
  return -reduce_max(sub(zero(), among_top));
}

// Updates a row's list. Scores above a threshold become candidates, from which the list is
// selected. Which panels hold one cannot be predicted, so these are listed first, without a branch.
struct TopKSelector {
  float* const candidates;
  int32_t* const candidate_keys;
  const int64_t top_k;
  float* const top_scores;
  int32_t* const top_keys;
  int64_t candidate_count = 0;
  int64_t panel_count = 0;
  float threshold = 0.0f;
  int32_t panels[kScoreBufferKeys / kPanelKeys + 1];  // first keys of the listed panels
  unsigned above[kScoreBufferKeys / kPanelKeys + 1];  // bits of their scores above the threshold

  // Not an aggregate, whose initialisation would write zeros to the arrays.
  TopKSelector(const Workspace& workspace, int64_t top_k_wanted, float* row_scores,
               int32_t* row_keys)
      : candidates(workspace.candidates),
        candidate_keys(workspace.candidate_keys),
        top_k(top_k_wanted),
        top_scores(row_scores),
        top_keys(row_keys) {}

  // Makes the list so far the only candidates.
  void restart_from_list() {
    for (candidate_count = 0; candidate_count < top_k && top_keys[candidate_count] >= 0;
         ++candidate_count) {
      candidates[candidate_count] = top_scores[candidate_count];
      candidate_keys[candidate_count] = top_keys[candidate_count];
    }
    threshold = top_scores[top_k - 1];
  }

  // Raises the threshold below a score that enough of the new keys reach.
  void raise_threshold(Vec lane_max) {
    const float bound = find_lower_bound(top_k, lane_max);
    if (bound > threshold) threshold = __builtin_nextafterf(bound, -kInfinity);
  }

  // Lists the panels of the scores [begin, end) of a block that reach above the threshold.
  void list_panels(const float* scores, int64_t begin, int64_t end, int32_t first_key) {
    const Vec least = broadcast(threshold);
    for (int64_t j = begin; j < end; j += kPanelKeys) {
      panels[panel_count] = first_key + int32_t(j);
      above[panel_count] = greater_mask(load(scores + j), least) |
                           greater_mask(load(scores + j + kLanes), least) << kLanes;
      panel_count += above[panel_count] != 0;
    }
  }

  // Adds the scores of a listed panel that are above the threshold to the candidates.
  void add_candidates(int64_t panel, const float* scores, int32_t first_key) {
    constexpr unsigned kAllLanes = (1u << kLanes) - 1u;
    for (int32_t half = 0; half < kPanelKeys; half += kLanes) {
      const unsigned mask = (above[panel] >> half) & kAllLanes;
      compress_store(load(scores + half), first_key + half, mask, candidates + candidate_count,
                     candidate_keys + candidate_count);
      candidate_count += __builtin_popcount(mask);
    }
    if (candidate_count + kPanelKeys + kPadFloats <= candidate_capacity(top_k)) return;
    update_list();
    restart_from_list();
  }

  void update_list() {
    select_largest(candidates, candidate_keys, candidate_count, top_k, top_scores, top_keys);
  }
};

// Updates a row's list with the scores of the task.
static void select_top_k(const TaskContext& context, int64_t row) {
  const int64_t top_k = context.problem.top_k();
  const ScoreBuffer& buffer = context.scores;
  float* const top_scores = context.state.top_scores + row * top_k;
  const Vec lane_max = load(context.workspace.lane_max + row * kLanes);
  if (!(reduce_max(lane_max) > top_scores[top_k - 1])) return;
  TopKSelector selector(context.workspace, top_k, top_scores, context.state.top_keys + row * top_k);
  selector.restart_from_list();
  selector.raise_threshold(lane_max);

  const int64_t tile_row = round_down(row, kTileRows);
  // Without a threshold all keys would be candidates at once; each block raises it.
  const int64_t blocks_per_step = selector.threshold > -kInfinity ? buffer.block_count : 1;
  for (int64_t first_block = 0; first_block < buffer.block_count; first_block += blocks_per_step) {
    for (int64_t block = first_block; block < first_block + blocks_per_step; ++block) {
      const int64_t index = row_index(context, block, tile_row);
      selector.list_panels(row_scores(context, block, row), buffer.begin[index], buffer.end[index],
                           int32_t(block * kBlockKeys));
    }
    for (int64_t i = 0; i < selector.panel_count; ++i) {
      const int32_t key = selector.panels[i];
      const float* scores = row_scores(context, key / kBlockKeys, row) + key % kBlockKeys;
      selector.add_candidates(i, scores, int32_t(context.task.first_key) + key);
    }
    selector.panel_count = 0;
  }
  selector.update_list();
}

// Adds the list of a row to the candidates in the workspace.
static int64_t append_list(const Workspace& workspace, const State& state, int64_t row,
                           int64_t top_k, int64_t count) {
  for (int64_t i = row * top_k; i < (row + 1) * top_k && state.top_keys[i] >= 0; ++i) {
    workspace.candidates[count] = state.top_scores[i];
    workspace.candidate_keys[count] = state.top_keys[i];
    ++count;
  }
  return count;
}

// Merges the list of a row of `from`, whose keys come later, into that of `into`.
static void merge_top_k(const Workspace& workspace, int64_t top_k, const State& into,
                        const State& from, int64_t row) {
  int64_t count = append_list(workspace, into, row, top_k, 0);
  count = append_list(workspace, from, row, top_k, count);
  select_largest(workspace.candidates, workspace.candidate_keys, count, top_k,
                 into.top_scores + row * top_k, into.top_keys + row * top_k);
}

}  // namespace keywise::KEYWISE_TARGET
