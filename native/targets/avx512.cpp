#define KEYWISE_TARGET avx512

#include "../make_target.h"

namespace keywise::avx512 {

extern const Target target;
const Target target = make_target("avx512");

}  // namespace keywise::avx512
