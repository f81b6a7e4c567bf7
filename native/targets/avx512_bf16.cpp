// As avx512, with the dot-product instruction for query . key in bfloat16: its products are exact in float32.

#include <immintrin.h>

#include "../core.h"

namespace keywise::avx512_bf16 {

#include "avx512.inl.h"

static constexpr bool kDotsPairs = true;
static inline Vec dot_pairs(Vec a, Vec b, Vec accumulator) {
  return _mm512_dpbf16_ps(accumulator, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

#include "../attend.inl.h"

extern const Target target;
const Target target = {"avx512_bf16", compute, merge, finish};

}  // namespace keywise::avx512_bf16
