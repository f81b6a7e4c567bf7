// Keys or values of one head in the memory of the caller. They come in chunks, so a range of keys
// may be several arrays.
#pragma once

#include <cstdint>

#include "simd.h"

namespace keywise::KEYWISE_TARGET {

static inline const char* row_address(const Tensor& tensor, Dtype dtype, int64_t item, int64_t head,
                                      int64_t token) {
  const int64_t offset =
      item * tensor.stride[0] + head * tensor.stride[1] + token * tensor.stride[2];
  return static_cast<const char*>(tensor.data) + offset * bytes_of(dtype);
}

// Consecutive keys of one chunk.
struct ChunkRows {
  const char* first_row = nullptr;
  int64_t stride_bytes = 0;
  const float* scales = nullptr;  // null for none
  int64_t count = 0;
};

// Returns the keys (or values) from first_key on that lie in one chunk, up to last_key - 1. A loop
// over all of a range advances by the count:
//   for (key = first_key; key < last_key; key += rows.count)
//     rows = find_rows(..., key, last_key);
static ChunkRows find_rows(const Problem& problem, const Task& task, Tensor Chunk::* side,
                           int64_t first_key, int64_t last_key) {
  int64_t low = 0;
  int64_t high = problem.chunk_count - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (problem.chunks[middle].first_key <= first_key)
      low = middle;
    else
      high = middle - 1;
  }
  const Chunk& chunk = problem.chunks[low];
  const Tensor& tensor = chunk.*side;
  const Scales& scales = side == &Chunk::key ? chunk.key_scale : chunk.value_scale;
  const int64_t token = first_key - chunk.first_key;

  ChunkRows rows;
  rows.first_row = row_address(tensor, problem.stored_dtype, task.item, task.key_head, token);
  rows.stride_bytes = tensor.stride[2] * bytes_of(problem.stored_dtype);
  if (scales.data)
    rows.scales =
        scales.data + task.item * scales.stride[0] + task.key_head * scales.stride[1] + token;
  rows.count = min(last_key, chunk.first_key + chunk.keys) - first_key;
  return rows;
}

// Writes the addresses of the keys (or values) first_key .. last_key - 1.
static void list_rows(const Problem& problem, const Task& task, Tensor Chunk::* side,
                      int64_t first_key, int64_t last_key, const char** addresses) {
  ChunkRows rows;
  for (int64_t key = first_key; key < last_key; key += rows.count) {
    rows = find_rows(problem, task, side, key, last_key);
    for (int64_t i = 0; i < rows.count; ++i) *addresses++ = rows.first_row + i * rows.stride_bytes;
  }
}

// Computes to[rows][kBlockKeys] = from x scales, for `count` keys.
static void multiply_by_scales(int64_t row_count, const float* from, const float* scales,
                               int64_t count, float* to) {
  for (int64_t r = 0; r < row_count; ++r, from += kBlockKeys, to += kBlockKeys) {
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) store(to + j, mul(load(from + j), load(scales + j)));
    for (; j < count; ++j) to[j] = from[j] * scales[j];
  }
}

}  // namespace keywise::KEYWISE_TARGET
