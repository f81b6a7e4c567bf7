// x86-64 with AVX-512 F, BW, DQ and VL; bfloat16 is widened to float32.

#include <immintrin.h>

#include "../core.h"

namespace keywise::avx512 {

#include "avx512.inl.h"

#include "no_pairs.inl.h"

#include "../attend.inl.h"
#include "../limits.inl.h"

extern const Target target;
const Target target = {"avx512", kHasBf16Dot, kTileRows, pack, compute, merge,
                       finish, accumulate_key_mass, multiply_adds, add_up};

}  // namespace keywise::avx512
