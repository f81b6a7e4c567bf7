// Matrices whose weights stay in the blocks of a GGUF file, and products with them.
// The blocks are described at https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
#pragma once

#include <cstdint>

#include "problem.h"

namespace keywise {

// The numbers are those of GGML's types.
enum class BlockFormat : int32_t {
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
};

struct BlockSize {
  int64_t elements = 0;
  int64_t bytes = 0;
};

// Returns the size of a block; 0 elements for an unknown format.
constexpr BlockSize block_size(BlockFormat format) {
  switch (format) {
    case BlockFormat::q4_0:
    case BlockFormat::iq4_nl:
      return {32, 18};
    case BlockFormat::q4_1:
      return {32, 20};
    case BlockFormat::q5_0:
      return {32, 22};
    case BlockFormat::q5_1:
      return {32, 24};
    case BlockFormat::q8_0:
      return {32, 34};
    case BlockFormat::q2_k:
      return {256, 84};
    case BlockFormat::q3_k:
      return {256, 110};
    case BlockFormat::q4_k:
      return {256, 144};
    case BlockFormat::q5_k:
      return {256, 176};
    case BlockFormat::q6_k:
      return {256, 210};
  }
  return {0, 0};
}

// [rows, columns], each row whole blocks.
struct QuantisedMatrix {
  const uint8_t* data = nullptr;
  BlockFormat format = BlockFormat::q8_0;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_bytes = 0;
};

// Weights are unpacked a slice of a row at a time: one block of 256, or eight of 32.
constexpr int64_t kSliceElements = 256;
// Groups of at least 16 elements share a scale.
constexpr int64_t kSliceGroups = 16;

// Input rows as int16, padded with zeros to whole slices. A few rows have a scale per group; many
// have one per slice, in the place of its first group.
struct QuantisedInputs {
  int64_t rows = 0;
  int64_t slices = 0;
  bool is_many = false;
  int16_t* numbers = nullptr;  // [rows, slices, kSliceElements]
  float* scale = nullptr;      // [rows, slices, kSliceGroups]
  float* sum = nullptr;        // [rows, slices, kSliceGroups] of the inputs of each group
};

// From so many rows on, weights become int16 too, which makes their products cheaper.
constexpr int64_t kManyRows = 32;

// Of a product of many rows: rows of the matrix that are unpacked together, and where. The sums of
// a slice fit 32 bits: kLargestWeight x kLargestInput x kSliceElements / 8 lanes.
constexpr int64_t kPackedBytes = 1 << 17;
constexpr int64_t kMaxPackedRows = 32;
constexpr float kLargestWeight = 4095.0f;
constexpr float kLargestInput = 16383.0f;

struct PackedRows {
  int16_t* numbers = nullptr;  // [rows, slices, kSliceElements]
  float* scale = nullptr;      // [rows, slices]
  float* offset = nullptr;     // [rows, slices, kSliceGroups]
};

// output[i, r] = sum of input[i, c] x weight[r, c] over c.
struct QuantisedProduct {
  QuantisedMatrix matrix;
  QuantisedInputs inputs;
  void* output = nullptr;  // [inputs, matrix rows]
  Dtype dtype = Dtype::float32;
};

}  // namespace keywise
