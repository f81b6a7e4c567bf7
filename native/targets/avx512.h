// x86-64 with AVX-512 F, BW, DQ and VL: sixteen lanes, thirty-two registers. Vocabulary: see
// simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../target_name.h"
#include "flush_subnormals.h"

#define KEYWISE_HAS_COMPRESS

namespace keywise::KEYWISE_TARGET {

typedef __m512 Vec;

static constexpr int kLanes = 16;
static constexpr int kTileRows = 12;  // 24 accumulators, 2 keys, 1 query
static constexpr int kValueRows = 6;  // 24 accumulators, 4 values, 1 weight
static constexpr int kValueVectors = 4;
static constexpr int kPackedRows = kValueRows;
static constexpr int kPackedVectors = kValueVectors;
static constexpr int kPairwiseVectors = 4;
static constexpr int kSoftmaxPanels = 4;
static constexpr float kLog2OfZero = -200.0f;

static inline Vec zero() { return _mm512_setzero_ps(); }
static inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline Vec load_n(const float* p, int count) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1u), p);
}
static inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
static inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
static inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
static inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
static inline Vec mul_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline Vec if_less(Vec x, Vec limit, Vec a, Vec b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
}
static inline Vec abs(Vec x) { return _mm512_abs_ps(x); }
static inline Vec copy_sign(Vec size, Vec sign) {
  return _mm512_or_ps(_mm512_abs_ps(size), _mm512_and_ps(_mm512_set1_ps(-0.0f), sign));
}
static inline Vec round_nearest(Vec x) { return _mm512_roundscale_ps(x, 0); }
static inline Vec ldexp(Vec p, Vec n) { return _mm512_scalef_ps(p, n); }
static inline unsigned greater_mask(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline void compress_store(Vec values, int32_t first_index, unsigned mask, float* numbers,
                                  int32_t* indices) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_add_epi32(_mm512_set1_epi32(first_index), lane);
  _mm512_storeu_ps(numbers, _mm512_maskz_compress_ps(__mmask16(mask), values));
  _mm512_storeu_si512(indices, _mm512_maskz_compress_epi32(__mmask16(mask), index));
}
static inline float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
static inline float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }
static inline Vec load_bfloat16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline Vec load_int8(const int8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline Vec load_float16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline void transpose(Vec* t) {
  Vec a[16];
  Vec b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(t[i], t[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(t[i], t[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
    a[i + 4] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
    a[i + 8] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
    t[i + 8] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0xdd);
    t[i + 4] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0xdd);
  }
}
// Every 128 bits of the result hold partial sums of t[0] .. t[3], in this order.
static inline Vec pairwise_add(const Vec* t) {
  const Vec a = _mm512_add_ps(_mm512_unpacklo_ps(t[0], t[1]), _mm512_unpackhi_ps(t[0], t[1]));
  const Vec b = _mm512_add_ps(_mm512_unpacklo_ps(t[2], t[3]), _mm512_unpackhi_ps(t[2], t[3]));
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
static inline Vec combine_pairwise(const Vec* t) {
  const Vec low =
      _mm512_add_ps(_mm512_shuffle_f32x4(t[0], t[1], 0x88), _mm512_shuffle_f32x4(t[0], t[1], 0xdd));
  const Vec high =
      _mm512_add_ps(_mm512_shuffle_f32x4(t[2], t[3], 0x88), _mm512_shuffle_f32x4(t[2], t[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                       _mm512_shuffle_f32x4(low, high, 0xdd));
}

static inline float widen_scale(uint16_t bits) { return _cvtsh_ss(bits); }
// 32 int8 as int16, and the products with as many int16, summed into the lanes: those of the first
// 16 into the first half.
template <int kGroup>
static constexpr int kGroupsAtOnce = 32 / kGroup;
template <int kCount>
static inline __m512i load_weights(const int8_t* place) {
  static_assert(kCount == 32);
  return _mm512_cvtepi8_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(place)));
}
template <int kCount>
static inline Vec dot_int16(__m512i weights, const int16_t* inputs) {
  static_assert(kCount == 32);
  return _mm512_cvtepi32_ps(_mm512_madd_epi16(weights, _mm512_loadu_si512(inputs)));
}
template <int kGroup>
static inline Vec load_factors(const float* place) {
  if constexpr (kGroup == 32) return broadcast(*place);
  return _mm512_mask_broadcastss_ps(broadcast(place[0]), 0xff00, _mm_load_ss(place + 1));
}
#define KEYWISE_HAS_BYTE_MASKS
static inline __m128i spread_bits(uint16_t bits) { return _mm_maskz_set1_epi8(bits, 16); }
// Replaces numbers of 0 .. 15, a multiple of 32 of them, by those of a table.
static inline void look_up(const int8_t* table, int8_t* numbers, int64_t count) {
  const __m256i entries =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  for (int64_t i = 0; i < count; i += 32) {
    __m256i* const place = reinterpret_cast<__m256i*>(numbers + i);
    _mm256_store_si256(place, _mm256_shuffle_epi8(entries, _mm256_load_si256(place)));
  }
}

// Vectors of int16, and sums of the products of neighbours as int32.
typedef __m512i IntVec;
static constexpr int kIntLanes = 32;
static inline IntVec int_zero() { return _mm512_setzero_si512(); }
static inline IntVec load_int16(const int16_t* place) { return _mm512_loadu_si512(place); }
static inline IntVec add_products(IntVec sum, IntVec a, IntVec b) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
}
static inline Vec to_floats(IntVec sum) { return _mm512_cvtepi32_ps(sum); }
// Writes numbers times a factor as int16.
static inline void write_int16(const int8_t* numbers, int count, float factor, int16_t* to) {
  for (int i = 0; i < count; i += 16) {
    const Vec product = _mm512_mul_ps(load_int8(numbers + i), _mm512_set1_ps(factor));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(product)));
  }
}

}  // namespace keywise::KEYWISE_TARGET
