// As avx512, with the dot-product instruction for query . key in bfloat16: its products are exact in float32.

#include <immintrin.h>

#include "../core.h"

namespace keywise::avx512_bf16 {

#include "avx512.inl.h"

static constexpr bool kDotsPairs = true;
static inline Vec dot_pairs(Vec a, Vec b, Vec accumulator) {
  return _mm512_dpbf16_ps(accumulator, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}
static inline Vec to_pairs(Vec left, Vec right) {
  return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(right, left));
}
static inline Vec interleave(const uint16_t* even, const uint16_t* odd) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

#include "../attend.inl.h"
#include "../limits.inl.h"

extern const Target target;
const Target target = {"avx512_bf16", kDotsPairs, pack, compute, merge, finish, add_columns, multiply_adds, add_up};

}  // namespace keywise::avx512_bf16
