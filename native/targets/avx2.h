// x86-64 with AVX2, FMA and F16C: eight lanes, sixteen registers. Vocabulary: see simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../target_name.h"
#include "flush_subnormals.h"

namespace keywise::KEYWISE_TARGET {

typedef __m256 Vec;

static constexpr int kLanes = 8;
static constexpr int kTileRows = 6;   // 12 accumulators, 2 keys, 1 query
static constexpr int kValueRows = 6;  // 12 accumulators, 2 values, 1 weight
static constexpr int kValueVectors = 2;
// 12 accumulators, 3 values, 1 weight; a fourth value stays in memory. Rows of weights lie 1 KB
// apart and probably share a bank of AMD's first-level cache: fewer of them are read sooner.
static constexpr int kPackedRows = 3;
static constexpr int kPackedVectors = 4;
static constexpr int kPairwiseVectors = 2;
static constexpr int kSoftmaxPanels = 2;
static constexpr float kLog2OfZero = -127.0f;

static inline Vec zero() { return _mm256_setzero_ps(); }
static inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline Vec load_n(const float* p, int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
}
static inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
static inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
static inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
static inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
static inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
static inline Vec mul_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
static inline Vec if_less(Vec x, Vec limit, Vec a, Vec b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ));
}
static inline Vec abs(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
static inline Vec copy_sign(Vec size, Vec sign) {
  return _mm256_or_ps(abs(size), _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
}
static inline Vec round_nearest(Vec x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline Vec ldexp(Vec p, Vec n) {
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}
static inline unsigned greater_mask(Vec a, Vec b) {
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
static inline float reduce_add(Vec v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float reduce_max(Vec v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
static inline Vec load_bfloat16(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
static inline Vec load_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
static inline Vec load_float16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline void transpose(Vec* t) {
  Vec pairs[8];
  Vec fours[8];
#pragma GCC unroll 16
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(t[i], t[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(t[i], t[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

static inline Vec pairwise_add(const Vec* t) { return _mm256_hadd_ps(t[0], t[1]); }
static inline Vec combine_pairwise(const Vec* t) {
  const Vec a = _mm256_hadd_ps(t[0], t[1]);
  const Vec b = _mm256_hadd_ps(t[2], t[3]);
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

static inline float widen_scale(uint16_t bits) { return _cvtsh_ss(bits); }
// 16 or 32 int8 as int16, and the products with as many int16, summed into the lanes.
template <int kCount>
struct Int16Weights {
  __m256i numbers[kCount / 16];
};
template <int kCount>
static inline Int16Weights<kCount> load_weights(const int8_t* place) {
  Int16Weights<kCount> weights;
  for (int i = 0; i < kCount / 16; ++i)
    weights.numbers[i] =
        _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(place + 16 * i)));
  return weights;
}
template <int kCount>
static inline Vec dot_int16(const Int16Weights<kCount>& weights, const int16_t* inputs) {
  const auto multiply = [&](int i) {
    return _mm256_madd_epi16(weights.numbers[i],
                             _mm256_loadu_si256(reinterpret_cast<const __m256i*>(inputs + 16 * i)));
  };
  if constexpr (kCount == 16) return _mm256_cvtepi32_ps(multiply(0));
  return _mm256_cvtepi32_ps(_mm256_add_epi32(multiply(0), multiply(kCount / 16 - 1)));
}
template <int kGroup>
static constexpr int kGroupsAtOnce = 1;
template <int kGroup>
static inline Vec load_factors(const float* place) {
  return broadcast(*place);
}
// Replaces numbers of 0 .. 15 by those of a table.
static inline void look_up(const int8_t* table, int8_t* numbers, int64_t count) {
  const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  for (int64_t i = 0; i < count; i += 16) {
    __m128i* const place = reinterpret_cast<__m128i*>(numbers + i);
    _mm_store_si128(place, _mm_shuffle_epi8(entries, _mm_load_si128(place)));
  }
}

// Vectors of int16, and sums of the products of neighbours as int32.
typedef __m256i IntVec;
static constexpr int kIntLanes = 16;
static inline IntVec int_zero() { return _mm256_setzero_si256(); }
static inline IntVec load_int16(const int16_t* place) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place));
}
static inline IntVec add_products(IntVec sum, IntVec a, IntVec b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
static inline Vec to_floats(IntVec sum) { return _mm256_cvtepi32_ps(sum); }
// Writes numbers times a factor as int16.
static inline void write_int16(const int8_t* numbers, int count, float factor, int16_t* to) {
  const auto multiply = [&](int i) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(load_int8(numbers + i), _mm256_set1_ps(factor)));
  };
  for (int i = 0; i < count; i += 16) {
    const __m256i packed = _mm256_packs_epi32(multiply(i), multiply(i + 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_permute4x64_epi64(packed, 0xd8));
  }
}

}  // namespace keywise::KEYWISE_TARGET
