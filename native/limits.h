// What this CPU can do at most with this instruction set, for benchmarks. No result depends on it.
#pragma once

#include <cstdint>

#include "simd.h"

namespace keywise::KEYWISE_TARGET {

// Independent chains: at least the latency of a multiply-add times those that begin per cycle, few
// enough for 16 registers.
static constexpr int kChains = 12;

// Returns the number of operations done.
template <bool kPairs>
static double run_multiply_adds(int64_t rounds) {
  // Each chain passes through the factor, so nothing can be computed before the loop; it tends to a
  // normal number.
  const Vec factor = broadcast(0.5f);
  const Vec addend = broadcast(0.25f);
  Vec chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = broadcast(float(i));
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i)
      chain[i] = kPairs ? dot_pairs(factor, addend, chain[i]) : mul_add(chain[i], factor, addend);
  double total = 0.0;
  for (int i = 0; i < kChains; ++i) total += double(reduce_add(chain[i]));
  volatile double used = total;  // otherwise the loop could be left out
  (void)used;
  return double(rounds) * kChains * kLanes * (kPairs ? 4 : 2);
}

static double multiply_adds(int64_t rounds, bool pairs) {
  if (pairs && kHasBf16Dot) return run_multiply_adds<kHasBf16Dot>(rounds);
  return run_multiply_adds<false>(rounds);
}

// Returns the sum of a buffer, read as fast as possible.
static double add_up(const float* data, int64_t count) {
  constexpr int kSums = 8;
  Vec sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = zero();
  int64_t index = 0;
  for (; index + kSums * kLanes <= count; index += kSums * kLanes)
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) sums[i] = add(sums[i], load(data + index + i * kLanes));
  double total = 0.0;
  for (int i = 0; i < kSums; ++i) total += double(reduce_add(sums[i]));
  for (; index < count; ++index) total += double(data[index]);
  return total;
}

}  // namespace keywise::KEYWISE_TARGET
