// What this CPU can do at most with this instruction set. The benchmarks compare with it; no result depends on it.

// Independent sums: at least a multiply-add's latency times those that begin per cycle, few enough for 16 registers.
static constexpr int kChains = 12;

template <bool pairs>
static double multiply_adds_in_registers(int64_t rounds) {
  // Each chain runs through the factor, so nothing can be computed ahead of the loop; it tends to a plain number.
  const Vec factor = broadcast(0.5f), addend = broadcast(0.25f);
  Vec chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = broadcast(float(i));
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i)
      chain[i] = pairs ? dot_pairs(factor, addend, chain[i]) : mul_add(chain[i], factor, addend);
  double running_sum = 0;
  for (int i = 0; i < kChains; ++i) running_sum += double(sum(chain[i]));
  volatile double needed = running_sum;  // else the loop could be left out
  (void)needed;
  return double(rounds) * kChains * kLanes * (pairs ? 4 : 2);
}

static double multiply_adds(int64_t rounds, bool pairs) {
  return pairs && kHasBf16Dot ? multiply_adds_in_registers<kHasBf16Dot>(rounds) : multiply_adds_in_registers<false>(rounds);
}

static double add_up(const float* data, int64_t count) {
  constexpr int kSums = 8;
  Vec sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = zero();
  int64_t at = 0;
  for (; at + kSums * kLanes <= count; at += kSums * kLanes)
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) sums[i] = add(sums[i], load(data + at + i * kLanes));
  double running_sum = 0;
  for (int i = 0; i < kSums; ++i) running_sum += double(sum(sums[i]));
  for (; at < count; ++at) running_sum += double(data[at]);
  return running_sum;
}
