// The backward pass for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace keywise::python {

void bind_gradients(nanobind::module_& module);

}  // namespace keywise::python
