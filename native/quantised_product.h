// Products of a few rows with a matrix in blocks, and dequantisation. A product is bound by reading
// the weights: each chunk of them is unpacked once into the first-level cache and multiplied there.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "elements.h"
#include "quantised_blocks.h"

namespace keywise::KEYWISE_TARGET {

// Calls function(chunk, groups) for every chunk of a row.
template <typename Format, typename Function>
KEYWISE_INLINE void for_each_chunk(const QuantisedMatrix& matrix, int64_t row, UnpackedChunk& chunk,
                                   Function function) {
  constexpr int64_t kBlocks = kChunkElements / Format::kElements;
  constexpr int kGroups = int(kChunkElements / Format::kGroup);
  const int64_t chunks = matrix.columns / kChunkElements;
  const uint8_t* blocks = matrix.data + row * matrix.row_bytes;
  for (int64_t i = 0; i < chunks; ++i, blocks += kBlocks * Format::kBytes) {
    Format::unpack(blocks, kBlocks, chunk);
    function(i, kGroups);
  }
  const int64_t rest = matrix.columns % kChunkElements;
  if (rest == 0) return;
  Format::unpack(blocks, rest / Format::kElements, chunk);
  function(chunks, int(rest / Format::kGroup));
}

// ---- Inputs ----

// Rounds a group of inputs; `sum` is that of the rounded ones. A group with a number that is not
// finite makes every result NaN.
static inline void round_group(const float* input, int count, int16_t* numbers, float& scale,
                               float& sum) {
  constexpr float kLargest = 32767.0f;
  Vec largest = zero();
  Vec products = zero();  // 0, or NaN after a number that is not finite
  for (int i = 0; i < count; i += kLanes) {
    largest = max(abs(load(input + i)), largest);
    products = mul_add(load(input + i), zero(), products);
  }
  scale = reduce_max(largest) / kLargest + reduce_add(products);
  // The reciprocal of a subnormal number can be infinite.
  const bool has_numbers = scale >= std::numeric_limits<float>::min();
  if (!has_numbers && !std::isnan(scale)) scale = 0.0f;
  const Vec factor = broadcast(has_numbers ? 1.0f / scale : 0.0f);
  Vec total = zero();
  alignas(64) float rounded[32];
  for (int i = 0; i < count; i += kLanes) {
    const Vec numbers_of_lanes = round_nearest(mul(load(input + i), factor));
    store(rounded + i, numbers_of_lanes);
    total = add(total, numbers_of_lanes);
  }
  sum = scale * reduce_add(total);
  for (int i = 0; i < count; ++i) numbers[i] = has_numbers ? int16_t(rounded[i]) : int16_t(0);
}

// Fills the rows of `to` from contiguous rows of inputs.
static void round_inputs(BlockFormat format, const void* inputs, Dtype dtype, int64_t columns,
                         const QuantisedInputs& to) {
  int group = 0;
  with_format(format, [&](auto blocks) { group = decltype(blocks)::kGroup; });
  const int64_t row_bytes = columns * bytes_of(dtype);
  for (int64_t row = 0; row < to.rows; ++row) {
    const char* const input = static_cast<const char*>(inputs) + row * row_bytes;
    for (int64_t chunk = 0; chunk < to.chunks; ++chunk) {
      const int64_t place = row * to.chunks + chunk;
      for (int i = 0; i < kChunkElements / group; ++i) {
        const int64_t column = chunk * kChunkElements + i * group;
        alignas(64) float numbers[32] = {};
        for (int k = 0; k < group && column < columns; k += kLanes)
          store(numbers + k, load_elements(input, dtype, column + k, kLanes));
        round_group(numbers, group, to.numbers + place * kChunkElements + i * group,
                    to.scale[place * kChunkGroups + i], to.sum[place * kChunkGroups + i]);
      }
    }
  }
}

// ---- Products ----

static inline void write_element(void* output, Dtype dtype, int64_t index, float value) {
  if (dtype == Dtype::float32)
    static_cast<float*>(output)[index] = value;
  else if (dtype == Dtype::bfloat16)
    static_cast<uint16_t*>(output)[index] = narrow_to_bfloat16(value);
  else
    static_cast<uint16_t*>(output)[index] = narrow_to_float16(value);
}

// Computes some rows of the matrix for the inputs first_input .. first_input + kInputs - 1.
template <typename Format, int kInputs>
static void multiply_rows_by(const QuantisedProduct& product, int64_t first_row, int64_t last_row,
                             int64_t first_input) {
  constexpr int kGroup = Format::kGroup;
  constexpr int kGroups = int(kChunkElements / kGroup);
  const QuantisedInputs& inputs = product.inputs;
  UnpackedChunk chunk;
  for (int64_t row = first_row; row < last_row; ++row) {
    Vec sums[kInputs][2];
    Vec offsets[kInputs];
#pragma GCC unroll 4
    for (int i = 0; i < kInputs; ++i) sums[i][0] = sums[i][1] = offsets[i] = zero();
    for_each_chunk<Format>(product.matrix, row, chunk, [&](int64_t number, int groups) {
#pragma GCC unroll 4
      for (int i = 0; i < kInputs; ++i) {
        const int64_t place = (first_input + i) * inputs.chunks + number;
        const int16_t* const numbers = inputs.numbers + place * kChunkElements;
        const float* const input_scale = inputs.scale + place * kChunkGroups;
        const float* const input_sum = inputs.sum + place * kChunkGroups;
        alignas(64) float factor[kChunkGroups];
#pragma GCC unroll 4
        for (int k = 0; k < kGroups; k += kLanes) {
          store(factor + k, mul(load(chunk.scale + k), load(input_scale + k)));
          if (Format::kHasOffset)
            offsets[i] = mul_add(load(chunk.offset + k), load(input_sum + k), offsets[i]);
        }
        for (int k = 0; k < groups; k += 2) {
          sums[i][0] = mul_add(broadcast(factor[k]),
                               dot_int16<kGroup>(chunk.numbers + k * kGroup, numbers + k * kGroup),
                               sums[i][0]);
          if (k + 1 == groups) break;
          sums[i][1] = mul_add(
              broadcast(factor[k + 1]),
              dot_int16<kGroup>(chunk.numbers + (k + 1) * kGroup, numbers + (k + 1) * kGroup),
              sums[i][1]);
        }
      }
    });
    for (int i = 0; i < kInputs; ++i) {
      const float total = reduce_add(add(add(sums[i][0], sums[i][1]), offsets[i]));
      write_element(product.output, product.dtype, (first_input + i) * product.matrix.rows + row,
                    total);
    }
  }
}

// Computes some rows of the matrix for all inputs.
static void multiply_rows(const QuantisedProduct& product, int64_t first_row, int64_t last_row) {
  with_format(product.matrix.format, [&](auto blocks) {
    using Format = decltype(blocks);
    int64_t input = 0;
    for (; input + 4 <= product.inputs.rows; input += 4)
      multiply_rows_by<Format, 4>(product, first_row, last_row, input);
    if (input + 2 <= product.inputs.rows) {
      multiply_rows_by<Format, 2>(product, first_row, last_row, input);
      input += 2;
    }
    if (input < product.inputs.rows)
      multiply_rows_by<Format, 1>(product, first_row, last_row, input);
  });
}

// ---- Dequantisation ----

static void dequantise_rows(const QuantisedMatrix& matrix, int64_t first_row, int64_t last_row,
                            void* output, Dtype dtype) {
  with_format(matrix.format, [&](auto blocks) {
    using Format = decltype(blocks);
    constexpr int kGroup = Format::kGroup;
    UnpackedChunk chunk;
    for (int64_t row = first_row; row < last_row; ++row)
      for_each_chunk<Format>(matrix, row, chunk, [&](int64_t number, int groups) {
        const int64_t begin = row * matrix.columns + number * kChunkElements;
        alignas(64) float weights[kChunkElements];
        float* const to = dtype == Dtype::float32 ? static_cast<float*>(output) + begin : weights;
        for (int k = 0; k < groups; ++k)
          for (int n = k * kGroup; n < (k + 1) * kGroup; ++n)
            to[n] = chunk.scale[k] * float(chunk.numbers[n]) + chunk.offset[k];
        if (dtype == Dtype::float32) return;
        uint16_t* const narrow = static_cast<uint16_t*>(output) + begin;
        if (dtype == Dtype::bfloat16)
          for (int n = 0; n < groups * kGroup; ++n) narrow[n] = narrow_to_bfloat16(weights[n]);
        else
          for (int n = 0; n < groups * kGroup; ++n) narrow[n] = narrow_to_float16(weights[n]);
      });
  });
}

}  // namespace keywise::KEYWISE_TARGET
