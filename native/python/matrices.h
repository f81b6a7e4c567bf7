// Python's interface to matrices in the blocks of a GGUF file.
#pragma once

#include <nanobind/nanobind.h>

namespace keywise::python {

void bind_matrices(nanobind::module_& module);

}  // namespace keywise::python
