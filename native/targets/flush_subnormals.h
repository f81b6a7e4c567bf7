// Flushing subnormal numbers to 0 on x86-64.
#pragma once

#include <xmmintrin.h>

#include "../target_name.h"

namespace keywise::KEYWISE_TARGET {

// Sets SSE's switch, which AVX2 and AVX-512 obey too, while an object lives.
class FlushSubnormals {
 public:
  FlushSubnormals() { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_ = _mm_getcsr();
};

}  // namespace keywise::KEYWISE_TARGET
