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

  void offer(unsigned above, const float* scores, int64_t first_key) {
    for (; above; above &= above - 1) {
      const int i = __builtin_ctz(above);
      candidates[count] = scores[i];
      keys[count++] = int32_t(first_key + i);
    }
    if (count + kPanelKeys <= candidate_room(top)) return;
    settle();
    begin_with_kept();
  }

  void settle() { select_largest(candidates, keys, count, top, top_scores, top_keys); }
};
