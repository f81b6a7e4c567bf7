#include "quantised.h"

#include <cstring>

#include "checked.h"
#include "core.h"
#include "float_mode.h"
#include "integers.h"
#include "threads.h"
#include "workspace.h"

namespace keywise {
namespace {

// Of a task: enough to be worth handing out, little enough that threads end together.
constexpr int64_t kTaskBytes = 1 << 16;
// Rows of the output that share a cache line belong together.
constexpr int64_t kRowStep = 16;

int64_t add_inputs(BufferLayout layout, QuantisedInputs& inputs) {
  const int64_t slices = checked_multiply(inputs.rows, inputs.slices);
  layout.add(inputs.numbers, checked_multiply(slices, kSliceElements));
  layout.add(inputs.scale, checked_multiply(slices, kSliceGroups));
  layout.add(inputs.sum, checked_multiply(slices, kSliceGroups));
  return layout.bytes();
}

int64_t add_packed_rows(BufferLayout layout, PackedRows& packed, int64_t rows, int64_t slices) {
  layout.add(packed.numbers, rows * slices * kSliceElements);
  layout.add(packed.scale, rows * slices);
  layout.add(packed.offset, rows * slices * kSliceGroups);
  return layout.bytes();
}

// Calls work(first row, last row) for all rows. Returns false when it was interrupted.
template <typename Work>
bool for_rows(const QuantisedMatrix& matrix, int64_t step, int threads, Interrupted interrupted,
              Work work) {
  const auto run_task = [&](int64_t task) {
    const DefaultFloatMode mode;
    work(task * step, min((task + 1) * step, matrix.rows));
  };
  return parallel_for(ceil_div(matrix.rows, step), threads, true, run_task, interrupted);
}

int64_t rows_of_task(const QuantisedMatrix& matrix) {
  return round_up(clamp(kTaskBytes / max(matrix.row_bytes, 1), 1, 1 << 12), kRowStep);
}

}  // namespace

bool multiply_quantised(const QuantisedMatrix& matrix, const void* inputs, int64_t count,
                        Dtype dtype, void* output, const Target& target, int threads,
                        Interrupted interrupted) {
  QuantisedProduct product;
  product.matrix = matrix;
  product.output = output;
  product.dtype = dtype;
  product.inputs.rows = count;
  product.inputs.slices = ceil_div(matrix.columns, kSliceElements);
  product.inputs.is_many = count >= kManyRows;
  const CallMemory memory(add_inputs(BufferLayout(), product.inputs));
  add_inputs(BufferLayout(memory.get()), product.inputs);
  {
    const DefaultFloatMode mode;
    target.round_inputs(matrix.format, inputs, dtype, matrix.columns, product.inputs);
  }
  if (!product.inputs.is_many)
    return for_rows(matrix, rows_of_task(matrix), threads, interrupted,
                    [&](int64_t first, int64_t last) {
                      target.multiply_rows(product, PackedRows(), first, last);
                    });
  const int64_t slices = product.inputs.slices;
  const int64_t slice_bytes = kSliceElements * int64_t(sizeof(int16_t));
  const int64_t step = clamp(kPackedBytes / (slices * slice_bytes) / 2 * 2, 2, kMaxPackedRows);
  return for_rows(matrix, step, threads, interrupted, [&](int64_t first, int64_t last) {
    PackedRows packed;
    task_scratch().place(
        [&](BufferLayout layout) { return add_packed_rows(layout, packed, step, slices); });
    target.multiply_rows(product, packed, first, last);
  });
}

bool dequantise(const QuantisedMatrix& matrix, void* output, Dtype dtype, const Target& target,
                int threads, Interrupted interrupted) {
  return for_rows(matrix, rows_of_task(matrix), threads, interrupted,
                  [&](int64_t first, int64_t last) {
                    target.dequantise_rows(matrix, first, last, output, dtype);
                  });
}

}  // namespace keywise
