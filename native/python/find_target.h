// The target of a name that Python passes.
#pragma once

#include <string>

#include "../core.h"

namespace keywise::python {

// Raises ValueError for a name that is unknown or cannot run here.
const Target& find_target(const std::string& name);

}  // namespace keywise::python
