#include "quantised.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "checked.h"
#include "core.h"
#include "float_mode.h"
#include "integers.h"
#include "threads.h"

namespace keywise {
namespace {

// Of a task: enough to be worth handing out, little enough that threads end together.
constexpr int64_t kTaskBytes = 1 << 16;
// Groups of rows that a task computes: rows of the output that share a cache line belong together.
constexpr int64_t kRowStep = 16;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using Buffer = std::unique_ptr<T, Free>;

template <typename T>
Buffer<T> allocate(int64_t count) {
  constexpr int64_t kAlignmentBytes = 64;
  const int64_t bytes = checked_round_up(checked_multiply(count, sizeof(T)), kAlignmentBytes);
  void* const memory = std::aligned_alloc(size_t(kAlignmentBytes), size_t(max(bytes, 64)));
  if (!memory) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(memory));
}

// Calls work(first row, last row) for all rows. Returns false when it was interrupted.
template <typename Work>
bool for_rows(const QuantisedMatrix& matrix, int threads, Interrupted interrupted, Work work) {
  const int64_t rows = round_up(clamp(kTaskBytes / max(matrix.row_bytes, 1), 1, 1 << 12), kRowStep);
  const auto run_task = [&](int64_t task) {
    const DefaultFloatMode mode;
    work(task * rows, min((task + 1) * rows, matrix.rows));
  };
  return parallel_for(ceil_div(matrix.rows, rows), threads, true, run_task, interrupted);
}

}  // namespace

bool multiply_quantised(const QuantisedMatrix& matrix, const void* inputs, int64_t count,
                        Dtype dtype, void* output, const Target& target, int threads,
                        Interrupted interrupted) {
  const int64_t chunks = ceil_div(matrix.columns, kChunkElements);
  const int64_t all_chunks = checked_multiply(count, chunks);
  const Buffer<int16_t> numbers = allocate<int16_t>(checked_multiply(all_chunks, kChunkElements));
  const Buffer<float> scale = allocate<float>(checked_multiply(all_chunks, kChunkGroups));
  const Buffer<float> sum = allocate<float>(checked_multiply(all_chunks, kChunkGroups));
  std::memset(scale.get(), 0, size_t(all_chunks * kChunkGroups) * sizeof(float));
  std::memset(sum.get(), 0, size_t(all_chunks * kChunkGroups) * sizeof(float));
  QuantisedProduct product;
  product.matrix = matrix;
  product.inputs = {count, chunks, numbers.get(), scale.get(), sum.get()};
  product.output = output;
  product.dtype = dtype;
  {
    const DefaultFloatMode mode;
    target.round_inputs(matrix.format, inputs, dtype, matrix.columns, product.inputs);
  }
  return for_rows(matrix, threads, interrupted,
                  [&](int64_t first, int64_t last) { target.multiply_rows(product, first, last); });
}

bool dequantise(const QuantisedMatrix& matrix, void* output, Dtype dtype, const Target& target,
                int threads, Interrupted interrupted) {
  return for_rows(matrix, threads, interrupted, [&](int64_t first, int64_t last) {
    target.dequantise_rows(matrix, first, last, output, dtype);
  });
}

}  // namespace keywise
