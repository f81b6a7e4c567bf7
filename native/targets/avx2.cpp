#define KEYWISE_TARGET avx2

#include "../make_target.h"

namespace keywise::avx2 {

extern const Target target;
const Target target = make_target("avx2");

}  // namespace keywise::avx2
