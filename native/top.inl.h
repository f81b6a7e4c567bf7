// The heaviest keys of a row. Included by attend.inl.h.

// A score that at least `top` keys reach: the one of that rank among the largest of every lane; -inf where there are
// more keys wanted than lanes.
static float reached_by(int64_t top, Vec of_lanes) {
  if (top > kLanes) return -kInfinity;
  float lanes[kLanes];
  store(lanes, of_lanes);
  Vec larger = zero();  // how many lanes are larger than this one
  for (int i = 0; i < kLanes; ++i)
    larger = add(larger, if_less(of_lanes, broadcast(lanes[i]), broadcast(1.0f), zero()));
  const Vec among_top = if_less(larger, broadcast(float(top)), of_lanes, broadcast(kInfinity));
  return -reduce_max(sub(zero(), among_top));
}

// Brings a row's list of heaviest keys up to date. Keys come in order; those above the bar wait to be chosen from. Which
// panels hold one cannot be predicted, so they are listed first, without a branch, as many at a time as a strip has.
struct Contest {
  float* const candidates;
  int32_t* const keys;
  const int64_t top;
  float* const top_scores;
  int32_t* const top_keys;
  int64_t count = 0, listed = 0;
  float bar = 0.0f;
  int32_t panels[kScoreBufferKeys / kPanelKeys + 1];
  unsigned above[kScoreBufferKeys / kPanelKeys + 1];

  // Not an aggregate, which would begin with zeros in every list.
  Contest(const Workspace& workspace, int64_t wanted, float* scores_kept, int32_t* keys_kept)
      : candidates(workspace.candidates),
        keys(workspace.candidate_keys),
        top(wanted),
        top_scores(scores_kept),
        top_keys(keys_kept) {}

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

  // Lists the panels of the scores [begin, end) that reach above the bar; the keys are counted from `first_key`.
  void list(const float* scores, int64_t begin, int64_t end, int32_t first_key) {
    const Vec least = broadcast(bar);
    for (int64_t j = begin; j < end; j += kPanelKeys) {
      panels[listed] = first_key + int32_t(j);
      above[listed] = greater_mask(load(scores + j), least) | greater_mask(load(scores + j + kLanes), least) << kLanes;
      listed += above[listed] != 0;
    }
  }

  // Takes from the listed panels what is above the bar; scores_at(key) are those of a panel.
  template <typename ScoresAt>
  void take(ScoresAt scores_at, int32_t first_key) {
    for (int64_t i = 0; i < listed; ++i) {
      const float* scores = scores_at(panels[i]);
      for (int32_t half = 0; half < kPanelKeys; half += kLanes, above[i] >>= kLanes) {
        const unsigned chosen = above[i] & ((1u << kLanes) - 1u);
        store_chosen(load(scores + half), first_key + panels[i] + half, chosen, candidates + count, keys + count);
        count += __builtin_popcount(chosen);
      }
      if (count + kPanelKeys + kPadFloats <= candidate_capacity(top)) continue;
      settle();
      begin_with_kept();
    }
    listed = 0;
  }

  void settle() { select_largest(candidates, keys, count, top, top_scores, top_keys); }
};
