// Any CPU: four lanes through the compiler's vector extension, no instruction beyond the architecture's floor.
//
// The vocabulary every target defines:
//   Vec, kLanes                     a vector of float32 and its width
//   kTileRows                       rows of a score tile (x 2 vectors of keys); accumulators must fit the registers
//   kValueRows, kValueVectors       rows x vectors of a value tile
//   kPackedRows, kPackedVectors     the same for packed values of float32
//   kDotsPairs, dot_pairs           whether bfloat16 pairs are multiplied directly: accumulator + a0 b0 + a1 b1
//   to_pairs(left, right)           two vectors narrowed to bfloat16, in order
//   interleave(even, odd)           kLanes bfloat16 of each as pairs (even, odd)
//   maximum(a, b)                   b where either is NaN
//   less_than_choose(x, l, a, b)    a where x < l, else b (b where x is NaN)
//   lanes_above(a, b)               bit i: lane i of a > that of b
//   store_chosen(v, n, c, p, k)     the lanes of v whose bit in c is set to p, side by side, the numbers n + lane of these
//                                   to k; may write a whole vector to each
//   times_power_of_two(p, n)        p x 2^n for whole n in [-126, 127]; 0 for kLog2OfZero; NaN stays NaN
//   kLog2OfZero                     a whole number below -126
//   FlushSubnormals                 while there is one, what would be subnormal is 0, where the CPU can be told so
//   kPanelsWeighed                  panels of scores that become weights together
//   load_first(p, n)                the first n < kLanes numbers, zeros behind them; reads no further
//   fold(tile)                      kFold vectors made one, each in lanes of its own
//   sum_folded(tile)                lane i is the sum of the i-th vector folded, kLanes / kFold results of fold
//   int8_pairs(p, n, pairs)         2 kLanes pairs of bfloat16 from n int8, zeros behind them
//   int8_pairs_of_keys(keys, b, p)  kInt8Fold int8, from byte b on, of every kFold-th key as pairs: half of each in p[0]
//   broadcast_fold(p)               the first kLanes / kFold numbers, again and again
//   int8_pairs_of_rows<C>(a, b, p)  C vectors of pairs (an element of a, the same of b)
//   transpose(tile)                 kLanes vectors as a square of 32-bit lanes

#include "../core.h"

namespace keywise::portable {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t VecInt __attribute__((vector_size(16)));

static constexpr int kLanes = 4;
static constexpr int kTileRows = 4;
static constexpr int kValueRows = 6;
static constexpr int kValueVectors = 2;
static constexpr int kPackedRows = kValueRows;
static constexpr int kPackedVectors = kValueVectors;
static constexpr int kFold = 1;
static constexpr int kPanelsWeighed = 2;
static constexpr float kLog2OfZero = -127.0f;

// There is no switch for it that every CPU has.
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
// Adding 1.5 x 2^23 leaves no room for a fraction, so the sum is rounded to a whole number.
static inline Vec round_nearest(Vec x) {
  const Vec magic = broadcast(12582912.0f);
  return (x + magic) - magic;
}
static inline Vec ldexp(Vec p, Vec n) {
  const VecInt exponent = (VecInt)(n + broadcast(12582912.0f)) - 0x4b400000;
  return p * (Vec)((exponent + 127) << 23);
}
static inline unsigned greater_mask(Vec a, Vec b) {
  const VecInt above = a > b;
  return unsigned((above[0] & 1) | (above[1] & 2) | (above[2] & 4) | (above[3] & 8));
}
static inline float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
static inline float reduce_max(Vec v) {
  const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
static inline Vec load_bfloat16(const uint16_t* p) {
  const VecInt bits = {int32_t(uint32_t(p[0]) << 16), int32_t(uint32_t(p[1]) << 16), int32_t(uint32_t(p[2]) << 16),
                      int32_t(uint32_t(p[3]) << 16)};
  return (Vec)bits;
}
static inline Vec load_int8(const int8_t* p) { return Vec{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }
static inline float widen(uint16_t bits, bool half);
static inline Vec load_float16(const uint16_t* p) {
  return Vec{widen(p[0], true), widen(p[1], true), widen(p[2], true), widen(p[3], true)};
}
static inline void transpose(Vec* t) {
  const Vec a = {t[0][0], t[1][0], t[2][0], t[3][0]}, b = {t[0][1], t[1][1], t[2][1], t[3][1]};
  const Vec c = {t[0][2], t[1][2], t[2][2], t[3][2]}, d = {t[0][3], t[1][3], t[2][3], t[3][3]};
  t[0] = a, t[1] = b, t[2] = c, t[3] = d;
}

static inline Vec fold(const Vec* t) { return t[0]; }
static inline Vec sum_folded(const Vec* t) { return Vec{sum(t[0]), sum(t[1]), sum(t[2]), sum(t[3])}; }

#include "no_pairs.inl.h"
#include "one_by_one.inl.h"

#include "../attend.inl.h"
#include "../limits.inl.h"

extern const Target target;
const Target target = {"portable", kHasBf16Dot, kTileRows, pack, compute, merge,
                       finish, accumulate_key_mass, multiply_adds, add_up};

}  // namespace keywise::portable
