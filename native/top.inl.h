// The heaviest keys of a row. Included by attend.inl.h.

// A score that at least `top` keys reach, as far as the largest of every lane tells; -inf where they do not tell.
static float reached_by(int64_t top, Vec of_lanes) {
  if (top > kLanes) return -kInfinity;
  float lanes[kLanes];
  store(lanes, of_lanes);
  int width = kLanes;
  for (; width >= 2 * top; width /= 2)
    for (int i = 0; i < width / 2; ++i) lanes[i] = lanes[i] > lanes[i + width / 2] ? lanes[i] : lanes[i + width / 2];
  float least = lanes[0];
  for (int i = 1; i < width; ++i) least = lanes[i] < least ? lanes[i] : least;
  return least;
}

// Brings a row's list of heaviest keys up to date. Keys are offered in order; those above the bar wait to be chosen from.
struct Contest {
  float* candidates;
  int32_t* keys;
  int64_t top;
  float* top_scores;
  int32_t* top_keys;
  int64_t count = 0;
  float bar = 0.0f;

  void begin_with_kept() {
    for (count = 0; count < top && top_keys[count] >= 0; ++count) {
      candidates[count] = top_scores[count];
      keys[count] = top_keys[count];
    }
    bar = top_scores[top - 1];
  }

  // of_lanes: the largest score of every lane among the keys that will be offered.
  void begin(Vec of_lanes) {
    begin_with_kept();
    const float reached = reached_by(top, of_lanes);
    if (reached > bar) bar = __builtin_nextafterf(reached, -kInfinity);
  }

  // Offers the scores [begin, end) of a block. Whether a panel holds one that matters cannot be predicted, so the panels
  // that do are listed first, without a branch.
  void offer(const float* scores, int64_t begin, int64_t end, int64_t first_key) {
    int32_t panels[kBlockKeys / kPanelKeys];
    unsigned above[kBlockKeys / kPanelKeys];
    const Vec least = broadcast(bar);
    int64_t found = 0;
    for (int64_t j = begin; j < end; j += kPanelKeys) {
      panels[found] = int32_t(j);
      above[found] = lanes_above(load(scores + j), least) | lanes_above(load(scores + j + kLanes), least) << kLanes;
      found += above[found] != 0;
    }
    for (int64_t i = 0; i < found; ++i) {
      for (int64_t half = 0; half < kPanelKeys; half += kLanes, above[i] >>= kLanes) {
        const int64_t j = panels[i] + half;
        const unsigned chosen = above[i] & ((1u << kLanes) - 1u);
        store_chosen(load(scores + j), int32_t(first_key + j), chosen, candidates + count, keys + count);
        count += __builtin_popcount(chosen);
      }
      if (count + kPanelKeys + kPad <= candidate_room(top)) continue;
      settle();
      begin_with_kept();
    }
  }

  void settle() { select_largest(candidates, keys, count, top, top_scores, top_keys); }
};
