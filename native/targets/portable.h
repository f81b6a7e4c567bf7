// Any CPU: four lanes through the compiler's vector extension, no instruction beyond the
// architecture's floor. Vocabulary: see simd.h.
#pragma once

#include <cstdint>

#include "../half.h"
#include "../target_name.h"

namespace keywise::KEYWISE_TARGET {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t VecInt __attribute__((vector_size(16)));

static constexpr int kLanes = 4;
static constexpr int kTileRows = 4;   // at most kLanes, so that a tile can be transposed
static constexpr int kValueRows = 6;  // 12 accumulators, 2 values, 1 weight
static constexpr int kValueVectors = 2;
static constexpr int kPackedRows = kValueRows;
static constexpr int kPackedVectors = kValueVectors;
static constexpr int kPairwiseVectors = 1;
static constexpr int kSoftmaxPanels = 2;
static constexpr float kLog2OfZero = -127.0f;

// No switch for this exists on every CPU.
struct FlushSubnormals {
  FlushSubnormals() {}
};

static inline Vec zero() { return Vec{0, 0, 0, 0}; }
static inline Vec broadcast(float x) { return Vec{x, x, x, x}; }
static inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
static inline Vec load_n(const float* p, int count) {
  Vec v = zero();
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
static inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
static inline Vec add(Vec a, Vec b) { return a + b; }
static inline Vec sub(Vec a, Vec b) { return a - b; }
static inline Vec mul(Vec a, Vec b) { return a * b; }
static inline Vec div(Vec a, Vec b) { return a / b; }
static inline Vec mul_add(Vec a, Vec b, Vec c) { return a * b + c; }
static inline Vec choose(VecInt condition, Vec a, Vec b) {
  return (Vec)((condition & (VecInt)a) | (~condition & (VecInt)b));
}
static inline Vec max(Vec a, Vec b) { return choose(a > b, a, b); }
static inline Vec if_less(Vec x, Vec limit, Vec a, Vec b) { return choose(x < limit, a, b); }
static inline Vec abs(Vec x) { return (Vec)((VecInt)x & 0x7fffffff); }
static inline Vec copy_sign(Vec size, Vec sign) {
  return (Vec)(((VecInt)size & 0x7fffffff) | ((VecInt)sign & int32_t(0x80000000)));
}
// 1.5 x 2^23 and its bits. Adding it leaves no room for a fraction, so the sum is rounded to an
// integer, which stands in the low bits.
static constexpr float kRoundingOffset = 12582912.0f;
static constexpr int32_t kRoundingOffsetBits = 0x4b400000;
static inline Vec round_nearest(Vec x) {
  const Vec offset = broadcast(kRoundingOffset);
  return (x + offset) - offset;
}
static inline Vec ldexp(Vec p, Vec n) {
  const VecInt exponent = (VecInt)(n + broadcast(kRoundingOffset)) - kRoundingOffsetBits;
  return p * (Vec)((exponent + 127) << 23);
}
static inline unsigned greater_mask(Vec a, Vec b) {
  const VecInt above = a > b;
  return unsigned((above[0] & 1) | (above[1] & 2) | (above[2] & 4) | (above[3] & 8));
}
static inline float reduce_add(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
static inline float reduce_max(Vec v) {
  const float a = v[0] > v[1] ? v[0] : v[1];
  const float b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
static inline Vec load_bfloat16(const uint16_t* p) {
  const VecInt bits = {int32_t(uint32_t(p[0]) << 16), int32_t(uint32_t(p[1]) << 16),
                       int32_t(uint32_t(p[2]) << 16), int32_t(uint32_t(p[3]) << 16)};
  return (Vec)bits;
}
static inline Vec load_int8(const int8_t* p) {
  return Vec{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
}
static inline Vec load_float16(const uint16_t* p) {
  return Vec{widen_float16(p[0]), widen_float16(p[1]), widen_float16(p[2]), widen_float16(p[3])};
}
static inline void transpose(Vec* t) {
  const Vec a = {t[0][0], t[1][0], t[2][0], t[3][0]};
  const Vec b = {t[0][1], t[1][1], t[2][1], t[3][1]};
  const Vec c = {t[0][2], t[1][2], t[2][2], t[3][2]};
  const Vec d = {t[0][3], t[1][3], t[2][3], t[3][3]};
  t[0] = a;
  t[1] = b;
  t[2] = c;
  t[3] = d;
}

static inline Vec pairwise_add(const Vec* t) { return t[0]; }
static inline Vec combine_pairwise(const Vec* t) {
  return Vec{reduce_add(t[0]), reduce_add(t[1]), reduce_add(t[2]), reduce_add(t[3])};
}

static inline float widen_scale(uint16_t bits) { return widen_float16(bits); }
// 16 or 32 int8, and the products with as many int16, summed into the lanes.
template <int kCount>
struct Int16Weights {
  const int8_t* numbers;
};
template <int kCount>
static inline Int16Weights<kCount> load_weights(const int8_t* place) {
  return {place};
}
template <int kCount>
static inline Vec dot_int16(const Int16Weights<kCount>& weights, const int16_t* inputs) {
  int32_t sums[kLanes] = {};
  for (int i = 0; i < kCount; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane)
      sums[lane] += int32_t(weights.numbers[i + lane]) * int32_t(inputs[i + lane]);
  return Vec{float(sums[0]), float(sums[1]), float(sums[2]), float(sums[3])};
}
template <int kGroup>
static constexpr int kGroupsAtOnce = 1;
template <int kGroup>
static inline Vec load_factors(const float* place) {
  return broadcast(*place);
}
// Replaces numbers of 0 .. 15 by those of a table.
static inline void look_up(const int8_t* table, int8_t* numbers, int64_t count) {
  for (int64_t i = 0; i < count; ++i) numbers[i] = table[numbers[i]];
}

// Vectors of int16, and sums of the products of neighbours as int32.
typedef VecInt IntVec;
static constexpr int kIntLanes = 8;
static inline IntVec int_zero() { return VecInt{0, 0, 0, 0}; }
static inline IntVec load_int16(const int16_t* place) {
  IntVec numbers;
  __builtin_memcpy(&numbers, place, sizeof numbers);
  return numbers;
}
static inline IntVec add_products(IntVec sum, IntVec a, IntVec b) {
  // The lower and the upper half of each lane, with their signs.
  return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
static inline Vec to_floats(IntVec sum) {
  return Vec{float(sum[0]), float(sum[1]), float(sum[2]), float(sum[3])};
}
// Writes numbers times a factor as int16.
static inline void write_int16(const int8_t* numbers, int count, float factor, int16_t* to) {
  for (int i = 0; i < count; ++i) {
    const float product = float(numbers[i]) * factor;
    to[i] = int16_t((product + kRoundingOffset) - kRoundingOffset);
  }
}

}  // namespace keywise::KEYWISE_TARGET
