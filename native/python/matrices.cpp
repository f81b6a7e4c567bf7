#include "matrices.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>
#include <utility>

#include "../checked.h"
#include "../core.h"
#include "../team.h"
#include "arrays.h"
#include "find_target.h"
#include "gil.h"

namespace keywise::python {
namespace {

using namespace nb::literals;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WritableBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A matrix and what holds its blocks.
struct HeldMatrix {
  Bytes bytes;
  QuantisedMatrix matrix;
};

HeldMatrix make_matrix(Bytes bytes, int format, int64_t columns) {
  HeldMatrix held{std::move(bytes), {}};
  held.matrix.data = held.bytes.data();
  held.matrix.format = BlockFormat(format);
  held.matrix.rows = int64_t(held.bytes.shape(0));
  held.matrix.columns = columns;
  held.matrix.row_bytes = int64_t(held.bytes.shape(1));
  const BlockSize block = block_size(held.matrix.format);
  if (block.elements == 0) throw nb::value_error("the format must be one of blocks");
  if (columns <= 0 || columns % block.elements != 0 ||
      checked_multiply(columns / block.elements, block.bytes) != held.matrix.row_bytes)
    throw nb::value_error("the rows must be whole blocks of the format");
  return held;
}

nb::object multiply(const HeldMatrix& held, nb::handle inputs, const std::string& target_name,
                    int threads) {
  const HeldArray input = ArrayReader().read("inputs", inputs);
  const InputArray& array = input.array;
  const QuantisedMatrix& matrix = held.matrix;
  const int64_t count = array.axes == 4 ? array.shape[2] : 0;
  const bool is_contiguous =
      array.stride[3] == 1 && (count <= 1 || array.stride[2] == matrix.columns);
  if (array.axes != 4 || array.shape[0] != 1 || array.shape[1] != 1 ||
      array.shape[3] != matrix.columns || !is_contiguous)
    throw nb::value_error("the inputs must be contiguous, of shape [1, 1, rows, columns]");
  const Dtype dtype = to_dtype(array.element);
  Results results(input, false);
  void* const output = results.add_output("output", {1, 1, count, matrix.rows});
  const Target& target = find_target(target_name);
  if (threads > 1 && is_torch_imported()) find_torch_threads();
  run_without_gil([&](Interrupted interrupted) {
    return multiply_quantised(matrix, array.data, count, dtype, output, target, threads,
                              interrupted);
  });
  return results.take()["output"];
}

Dtype read_dtype(const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "float16") return Dtype::float16;
  throw nb::value_error("the dtype must be float32, bfloat16 or float16");
}

void write_weights(const HeldMatrix& held, int64_t first_row, int64_t last_row,
                   const WritableBytes& output, const std::string& dtype_name,
                   const std::string& target_name, int threads) {
  const Dtype dtype = read_dtype(dtype_name);
  QuantisedMatrix matrix = held.matrix;
  if (first_row < 0 || last_row < first_row || last_row > matrix.rows)
    throw nb::value_error("the rows must be those of the matrix");
  matrix.data += first_row * matrix.row_bytes;
  matrix.rows = last_row - first_row;
  if (checked_multiply(matrix.rows, matrix.columns, bytes_of(dtype)) > int64_t(output.size()))
    throw nb::value_error("the output must have room for the rows");
  const Target& target = find_target(target_name);
  if (threads > 1 && is_torch_imported()) find_torch_threads();
  run_without_gil([&](Interrupted interrupted) {
    return dequantise(matrix, output.data(), dtype, target, threads, interrupted);
  });
}

}  // namespace

void bind_matrices(nb::module_& module) {
  nb::class_<HeldMatrix>(module, "QuantisedMatrix", "A matrix in the blocks of a GGUF file.")
      .def(
          "__init__",
          [](HeldMatrix* matrix, Bytes bytes, int format, int64_t columns) {
            new (matrix) HeldMatrix(make_matrix(std::move(bytes), format, columns));
          },
          "bytes"_a, "format"_a, "columns"_a)
      .def("multiply", &multiply, "inputs"_a, "target"_a, "threads"_a,
           "Multiply rows [1, 1, rows, columns] by the transpose of the matrix.")
      .def("write_weights", &write_weights, "first_row"_a, "last_row"_a, "output"_a, "dtype"_a,
           "target"_a, "threads"_a, "Write the weights of some rows into a buffer of bytes.");
}

}  // namespace keywise::python
