// The vector vocabulary of the target that a file is compiled for, and helpers written in it.
//
// clang-format off
// targets/<KEYWISE_TARGET>.h defines
//   Vec, kLanes                   a vector of float32 and its width
//   kTileRows                     rows of a score tile, which is two vectors of keys wide
//   kValueRows, kValueVectors     rows x vectors of a value tile
//   kPackedRows, kPackedVectors   the same for packed values of float32
//   kSoftmaxPanels                panels of scores that become weights together
//   kLog2OfZero                   an integer below -126, whose power of two ldexp makes 0
//   FlushSubnormals               while an object lives, subnormal results are 0 where the CPU can
//   zero, broadcast, load, store  load and store need no alignment
//   load_n(p, n)                  the first n < kLanes numbers, then zeros; reads no further
//   load_float16, load_bfloat16, load_int8
//                                 kLanes elements widened to float32
//   add, sub, mul, div, abs, round_nearest
//                                 lane by lane
//   mul_add(a, b, c)              a x b + c, rounded once where the CPU has such an instruction
//   max(a, b)                     b where either is NaN
//   if_less(x, limit, a, b)       a where x < limit, else b (b where x is NaN)
//   copy_sign(size, sign)         |size| with the sign of `sign`
//   ldexp(p, n)                   p x 2^n for integers n in [-126, 127]; 0 for kLog2OfZero; NaN
//                                 stays NaN
//   greater_mask(a, b)            bit i: lane i of a > lane i of b
//   reduce_add, reduce_max        over all lanes
//   transpose(tile)               kLanes vectors as a square of 32-bit lanes
//   pairwise_add(vectors)         kPairwiseVectors vectors become one, with partial sums of each in
//                                 lanes of its own
//   combine_pairwise(sums)        kLanes / kPairwiseVectors results of pairwise_add become one
//                                 vector: lane i is the sum of vector i
//   widen_scale(bits)             a float16 as float32
//   kGroupsAtOnce<kGroup>         groups of 16 or 32 numbers that dot_int16 multiplies together
//   load_weights<kCount>(place)   16 or 32 int8 for dot_int16
//   dot_int16(weights, inputs)    their products with as many int16, summed into the lanes of their
//                                 group
//   load_factors<kGroup>(place)   the factors of these groups, each in the lanes of its group
//   IntVec, kIntLanes             a vector of int16, and int_zero, load_int16, to_floats
//   add_products(sum, a, b)       sum + the products of neighbours, as int32
//   write_int16(numbers, count, factor, to)  int8 times a factor, rounded, 16 at a time
//   look_up(table, numbers, count)  replaces numbers of 0 .. 15 by the entries of a table
// Optional: KEYWISE_HAS_COMPRESS and compress_store, KEYWISE_HAS_BF16_DOT and the functions of pairs
// of bfloat16, both described below; KEYWISE_HAS_BYTE_MASKS and spread_bits(bits), 16 bytes of 16
// where a bit is set and 0 elsewhere.
// clang-format on
#pragma once

#include <cstdint>

#include "always_inline.h"
#include "integers.h"
#include "problem.h"
#include "target.h"
#include "target_name.h"

#define KEYWISE_QUOTE(path) #path
#define KEYWISE_QUOTE_EXPANDED(path) KEYWISE_QUOTE(path)
// clang-format off
#include KEYWISE_QUOTE_EXPANDED(targets/KEYWISE_TARGET.h)
// clang-format on

namespace keywise::KEYWISE_TARGET {

// The overload for vectors would hide that for integers.
using keywise::max;

// Keys of a panel: the keys of a block are packed side by side, two vectors wide.
static constexpr int64_t kPanelKeys = 2 * kLanes;
static constexpr int64_t kCacheLineBytes = 64;

static_assert(kTileRows <= kMaxTileRows && kTileRows <= kLanes && kLanes <= 16);
static_assert(kPadFloats % kLanes == 0 && kBlockKeys % kPanelKeys == 0 && kPanelKeys <= 32);

#ifndef KEYWISE_HAS_COMPRESS
// Stores the lanes of `values` whose bit in `mask` is set side by side, and their numbers
// first_index + lane. May write a whole vector to each.
static inline void compress_store(Vec values, int32_t first_index, unsigned mask, float* numbers,
                                  int32_t* indices) {
  float lanes[kLanes];
  store(lanes, values);
  for (; mask; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    *numbers++ = lanes[lane];
    *indices++ = first_index + lane;
  }
}
#endif

#ifdef KEYWISE_HAS_BF16_DOT
static constexpr bool kHasBf16Dot = true;
#else
// No instruction multiplies pairs of bfloat16: never called, but templates name them.
static constexpr bool kHasBf16Dot = false;
static constexpr int64_t kInt8StepBytes = 16;

// Returns accumulator + a0 x b0 + a1 x b1 per lane, a pair of bfloat16.
static inline Vec dot_pairs(Vec, Vec, Vec accumulator) { return accumulator; }
// Returns pairs times a power of two.
static inline Vec scale_pairs(Vec pairs, Vec) { return pairs; }
// Returns two vectors narrowed to bfloat16, in order.
static inline Vec to_pairs(Vec left, Vec) { return left; }
// Returns kLanes bfloat16 of each as pairs (even, odd).
static inline Vec interleave(const uint16_t*, const uint16_t*) { return zero(); }
// Returns the first kLanes / kPairwiseVectors numbers, repeated.
static inline Vec load_repeated(const float*) { return zero(); }
// Loads `count` int8 as 2 kLanes pairs of bfloat16, zeros behind the last.
static inline void load_int8_pairs(const int8_t*, int64_t, Vec* pairs) {
  pairs[0] = pairs[1] = zero();
}
// Loads kInt8StepBytes int8, from a byte on, of every kPairwiseVectors-th key as pairs: half of
// each in pairs[0].
static inline void load_int8_pairs_of_keys(const char* const*, int64_t, Vec* pairs) {
  pairs[0] = pairs[1] = zero();
}
// Loads C vectors of pairs (an element of the even row, the same element of the odd row).
template <int C>
static inline void load_int8_pairs_of_rows(const char*, const char*, Vec* pairs) {
  pairs[0] = zero();
}
#endif

// Returns the sums of kLanes vectors, lane i that of vector i.
static inline Vec reduce_add_each(const Vec* vectors) {
  Vec sums[kLanes / kPairwiseVectors];
  for (int i = 0; i < kLanes / kPairwiseVectors; ++i)
    sums[i] = pairwise_add(vectors + i * kPairwiseVectors);
  return combine_pairwise(sums);
}

// Loads a vector once: the compiler would read it again from memory for each of its uses.
KEYWISE_INLINE void keep_in_register(IntVec& numbers) {
#if defined(__x86_64__)
  __asm__("" : "+x"(numbers));
#else
  (void)numbers;
#endif
}

// Stores an array before it is read again: a broadcast from memory takes no shuffle.
KEYWISE_INLINE void keep_in_memory(const float* numbers) {
  __asm__("" : : "r"(numbers) : "memory");
}

// Prefetches into the second-level cache: the first level waits for too few lines at a time to keep
// the memory busy. Functions that prefetch and do nothing else must be inlined: GCC takes them for
// functions without effects and drops the calls.
KEYWISE_INLINE void prefetch(const char* place) { __builtin_prefetch(place, 0, 2); }

}  // namespace keywise::KEYWISE_TARGET
