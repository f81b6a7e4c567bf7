// As avx512, with the dot-product instruction for pairs of bfloat16, whose products are exact in
// float32, and AVX512_VBMI.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../target_name.h"
#include "avx512.h"

#define KEYWISE_HAS_BF16_DOT

namespace keywise::KEYWISE_TARGET {

static inline Vec dot_pairs(Vec a, Vec b, Vec accumulator) {
  return _mm512_dpbf16_ps(accumulator, (__m512bh)_mm512_castps_si512(a),
                          (__m512bh)_mm512_castps_si512(b));
}
// Exact but for products below 2^-126, which lose bits; dot_pairs takes them for 0 in any case.
static inline Vec scale_pairs(Vec pairs, Vec factor) {
  const __m512i high_half = _mm512_set1_epi32(int32_t(0xffff0000));
  const __m512i bits = _mm512_castps_si512(pairs);
  const Vec even = mul(_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)), factor);
  const Vec odd = mul(_mm512_castsi512_ps(_mm512_and_si512(bits, high_half)), factor);
  return _mm512_castsi512_ps(
      _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16),
                      _mm512_and_si512(_mm512_castps_si512(odd), high_half)));
}
static inline Vec to_pairs(Vec left, Vec right) {
  return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(right, left));
}

// The bytes of 0 .. 127 in bfloat16: a table is two registers, and looking up 64 bytes in it one
// instruction.
struct Bytes {
  alignas(64) uint8_t high[128] = {};
  alignas(64) uint8_t low[128] = {};
  // The order of the bytes of two rows of 64 each in which widening leaves the first 32 columns in
  // order.
  alignas(64) uint8_t rows[64] = {};
  constexpr Bytes() {
    for (int n = 1; n < 128; ++n) {
      int exponent = 0;
      while (n >> (exponent + 1)) ++exponent;
      const int bits = (127 + exponent) << 7 | ((n << (7 - exponent)) & 127);
      high[n] = uint8_t(bits >> 8);
      low[n] = uint8_t(bits & 255);
    }
    for (int i = 0; i < 64; ++i)
      rows[i] = uint8_t(i % 2 * 64 + i / 8 % 2 * 16 + i / 16 * 4 + i / 2 % 4);
  }
};
static constexpr Bytes kBytes;

// pairs[0] is the first half of every 128 bits of int8 in bfloat16, pairs[1] the second; both are
// exact.
static inline void widen_int8(__m512i x, Vec* pairs) {
  const __m512i size = _mm512_abs_epi8(x);
  const auto look_up = [&](const uint8_t* table) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), size, _mm512_load_si512(table + 64));
  };
  const __m512i low = look_up(kBytes.low);
  const __m512i sign = _mm512_set1_epi8(-128);
  // 0xf8: a | (b & c).
  const __m512i high = _mm512_ternarylogic_epi32(look_up(kBytes.high), x, sign, 0xf8);
  pairs[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi8(low, high));
  pairs[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi8(low, high));
}
static inline __m512i load_bytes(const void* p, int64_t count) {
  return count >= 64 ? _mm512_loadu_si512(p)
                     : _mm512_maskz_loadu_epi8((__mmask64(1) << count) - 1, p);
}
static inline void load_int8_pairs(const int8_t* p, int64_t count, Vec* pairs) {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  widen_int8(_mm512_permutexvar_epi64(order, load_bytes(p, count)), pairs);
}
// Loads alone bring the keys together: 128 bits each.
static constexpr int64_t kInt8StepBytes = 16;
static inline void load_int8_pairs_of_keys(const char* const* keys, int64_t byte, Vec* pairs) {
  const auto load_step = [&](int k) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys[k] + byte));
  };
  __m512i x = _mm512_castsi128_si512(load_step(0));
  x = _mm512_mask_broadcast_i32x4(x, 0x00f0, load_step(4));
  x = _mm512_mask_broadcast_i32x4(x, 0x0f00, load_step(8));
  widen_int8(_mm512_mask_broadcast_i32x4(x, 0xf000, load_step(12)), pairs);
}
static inline Vec load_repeated(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
// C vectors of pairs of an element of `even` and the same one of `odd`.
template <int C>
static inline void load_int8_pairs_of_rows(const char* even, const char* odd, Vec* pairs) {
  if constexpr (C > 4) {
    load_int8_pairs_of_rows<C - 4>(even + 4 * kLanes, odd + 4 * kLanes, pairs + 4);
    return load_int8_pairs_of_rows<4>(even, odd, pairs);
  }
  const __m512i first = load_bytes(even, C * kLanes);
  const __m512i second = load_bytes(odd, C * kLanes);
  const __m512i order = _mm512_load_si512(kBytes.rows);
  Vec wide[4];
  widen_int8(_mm512_permutex2var_epi8(first, order, second), wide);
  if (C > 2)
    widen_int8(
        _mm512_permutex2var_epi8(first, _mm512_add_epi8(order, _mm512_set1_epi8(32)), second),
        wide + 2);
  for (int c = 0; c < C && c < 4; ++c) pairs[c] = wide[c];
}
static inline Vec interleave(const uint16_t* even, const uint16_t* odd) {
  const __m512i low =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
  const __m512i high =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

}  // namespace keywise::KEYWISE_TARGET
