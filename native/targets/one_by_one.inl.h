// Lanes are chosen one by one where no instruction brings them together.

static inline void store_chosen(Vec v, int32_t first, unsigned chosen, float* numbers, int32_t* places) {
  float lanes[kLanes];
  store(lanes, v);
  for (; chosen; chosen &= chosen - 1) {
    const int lane = __builtin_ctz(chosen);
    *numbers++ = lanes[lane];
    *places++ = first + lane;
  }
}
