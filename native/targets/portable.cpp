#define KEYWISE_TARGET portable

#include "../make_target.h"

namespace keywise::portable {

extern const Target target;
const Target target = make_target("portable");

}  // namespace keywise::portable
