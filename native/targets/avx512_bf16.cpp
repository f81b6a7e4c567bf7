#define KEYWISE_TARGET avx512_bf16

#include "../make_target.h"

namespace keywise::avx512_bf16 {

extern const Target target;
const Target target = make_target("avx512_bf16");

}  // namespace keywise::avx512_bf16
