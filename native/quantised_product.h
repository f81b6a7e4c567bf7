// Products of a few rows with a matrix in blocks, and dequantisation. A product is bound by reading
// the weights: each slice of them is unpacked once into the first-level cache and multiplied there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "elements.h"
#include "quantised_blocks.h"

namespace keywise::KEYWISE_TARGET {

// Calls function(slice, groups) for every slice of a row.
template <typename Format, typename Function>
KEYWISE_INLINE void for_each_slice(const QuantisedMatrix& matrix, int64_t row, UnpackedSlice& slice,
                                   Function function) {
  constexpr int64_t kBlocks = kSliceElements / Format::kElements;
  constexpr int kGroups = int(kSliceElements / Format::kGroup);
  const int64_t slices = matrix.columns / kSliceElements;
  const uint8_t* blocks = matrix.data + row * matrix.row_bytes;
  for (int64_t i = 0; i < slices; ++i, blocks += kBlocks * Format::kBytes) {
    Format::unpack(blocks, kBlocks, slice);
    function(i, kGroups);
  }
  const int64_t rest = matrix.columns % kSliceElements;
  if (rest == 0) return;
  Format::unpack(blocks, rest / Format::kElements, slice);
  function(slices, int(rest / Format::kGroup));
}

// ---- Inputs ----

// Returns the factor that brings some inputs into the range of +-limit, and its reciprocal in
// `scale`: NaN where a number is not finite, so that every result is NaN.
static inline float find_factor(const float* input, int count, float limit, float& scale) {
  Vec largest = zero();
  Vec products = zero();  // 0, or NaN after a number that is not finite
  for (int i = 0; i < count; i += kLanes) {
    largest = max(abs(load(input + i)), largest);
    products = mul_add(load(input + i), zero(), products);
  }
  scale = reduce_max(largest) / limit + reduce_add(products);
  // The reciprocal of a subnormal number can be infinite.
  if (scale >= std::numeric_limits<float>::min()) return 1.0f / scale;
  if (!std::isnan(scale)) scale = 0.0f;
  return 0.0f;
}

// Rounds some inputs times a factor and returns the sum of the integers.
static inline float round_group(const float* input, int count, float factor, int16_t* numbers) {
  Vec total = zero();
  alignas(64) float rounded[32];
  for (int i = 0; i < count; i += kLanes) {
    const Vec integers = round_nearest(mul(load(input + i), broadcast(factor)));
    store(rounded + i, integers);
    total = add(total, integers);
  }
  // Without numbers the factor is 0, and NaN times 0 no integer.
  for (int i = 0; i < count; ++i) numbers[i] = factor > 0.0f ? int16_t(rounded[i]) : int16_t(0);
  return reduce_add(total);
}

// Fills the rows of `to` from contiguous rows of inputs.
static void round_inputs(BlockFormat format, const void* inputs, Dtype dtype, int64_t columns,
                         const QuantisedInputs& to) {
  int group = 0;
  with_format(format, [&](auto blocks) { group = decltype(blocks)::kGroup; });
  const int step = to.is_many ? int(kSliceElements) : group;
  const float limit = to.is_many ? kLargestInput : 32767.0f;
  const int64_t row_bytes = columns * bytes_of(dtype);
  for (int64_t place = 0; place < to.rows * to.slices; ++place) {
    const char* const row = static_cast<const char*>(inputs) + place / to.slices * row_bytes;
    const int64_t first = place % to.slices * kSliceElements;
    alignas(64) float numbers[kSliceElements] = {};
    for (int64_t k = 0; k < kSliceElements && first + k < columns; k += kLanes)
      store(numbers + k, load_elements(row, dtype, first + k, kLanes));
    float* const scale = to.scale + place * kSliceGroups;
    float* const sum = to.sum + place * kSliceGroups;
    // Whole vectors of sums are read: those of groups that a format does not have must be numbers.
    std::fill(sum, sum + kSliceGroups, 0.0f);
    for (int begin = 0; begin < kSliceElements; begin += step) {
      float& own_scale = scale[begin / step];
      const float factor = find_factor(numbers + begin, step, limit, own_scale);
      for (int k = begin; k < begin + step; k += group)
        sum[k / group] = own_scale * round_group(numbers + k, group, factor,
                                                 to.numbers + place * kSliceElements + k);
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
  constexpr int kGroups = int(kSliceElements / kGroup);
  constexpr int kAtOnce = kGroupsAtOnce<kGroup>;
  // One sum of one input would wait for itself.
  constexpr int kSums = kInputs == 1 ? 2 : 1;
  const QuantisedInputs& inputs = product.inputs;
  UnpackedSlice slice;
  for (int64_t row = first_row; row < last_row; ++row) {
    Vec sums[kInputs][kSums];
    Vec offsets[kInputs];
#pragma GCC unroll 8
    for (int i = 0; i < kInputs; ++i) {
      offsets[i] = zero();
      for (int k = 0; k < kSums; ++k) sums[i][k] = zero();
    }
    for_each_slice<Format>(product.matrix, row, slice, [&](int64_t number, int groups) {
      const int16_t* numbers[kInputs];
      alignas(64) float factor[kInputs][kSliceGroups];
#pragma GCC unroll 8
      for (int i = 0; i < kInputs; ++i) {
        const int64_t place = (first_input + i) * inputs.slices + number;
        numbers[i] = inputs.numbers + place * kSliceElements;
#pragma GCC unroll 4
        for (int k = 0; k < kGroups; k += kLanes) {
          const int64_t group = place * kSliceGroups + k;
          store(factor[i] + k, mul(load(slice.scale + k), load(inputs.scale + group)));
          if (Format::kHasOffset)
            offsets[i] = mul_add(load(slice.offset + k), load(inputs.sum + group), offsets[i]);
        }
      }
      keep_in_memory(&factor[0][0]);
      for (int k = 0; k < groups; k += kSums * kAtOnce) {
#pragma GCC unroll 2
        for (int n = 0; n < kSums; ++n) {
          const int first = k + n * kAtOnce;
          if (n > 0 && first == groups) break;
          const auto weights = load_weights<kGroup * kAtOnce>(slice.numbers + first * kGroup);
#pragma GCC unroll 8
          for (int i = 0; i < kInputs; ++i)
            sums[i][n] = mul_add(load_factors<kGroup>(factor[i] + first),
                                 dot_int16<kGroup * kAtOnce>(weights, numbers[i] + first * kGroup),
                                 sums[i][n]);
        }
      }
    });
    for (int i = 0; i < kInputs; ++i) {
      Vec total = offsets[i];
      for (int k = 0; k < kSums; ++k) total = add(total, sums[i][k]);
      write_element(product.output, product.dtype, (first_input + i) * product.matrix.rows + row,
                    reduce_add(total));
    }
  }
}

// ---- Products of many rows ----

// Returns the scale of a slice in integers of at most kLargestWeight; NaN where a number of its
// block is not finite.
template <typename Format>
static inline float find_scale(const UnpackedSlice& slice, int groups) {
  float largest = 0.0f;
  float products = 0.0f;  // 0, or NaN after a number that is not finite
  for (int k = 0; k < groups; ++k) {
    largest = std::max(largest, std::fabs(slice.scale[k]));
    products += 0.0f * slice.scale[k];
  }
  const float unit =
      slice.unit != 0.0f ? slice.unit : largest * Format::kLargestNumber / kLargestWeight;
  return unit + products;
}

// Unpacks some rows into integers of at most kLargestWeight with a scale per slice. The groups of
// large formats have integers for scales, so theirs are exact.
template <typename Format>
static void pack_rows(const QuantisedMatrix& matrix, int64_t first_row, int64_t last_row,
                      int64_t slices, const PackedRows& packed) {
  constexpr int kGroup = Format::kGroup;
  UnpackedSlice slice;
  for (int64_t row = first_row; row < last_row; ++row)
    for_each_slice<Format>(matrix, row, slice, [&](int64_t number, int groups) {
      const int64_t place = (row - first_row) * slices + number;
      int16_t* const numbers = packed.numbers + place * kSliceElements;
      float& scale = packed.scale[place];
      scale = find_scale<Format>(slice, groups);
      for (int k = 0; k < groups; ++k) {
        const float multiplier = std::isfinite(1.0f / scale) ? slice.scale[k] / scale : 0.0f;
        write_int16(slice.numbers + k * kGroup, kGroup, multiplier, numbers + k * kGroup);
      }
      for (int64_t n = groups * kGroup; n < kSliceElements; ++n) numbers[n] = 0;
      if (Format::kHasOffset)
        std::memcpy(packed.offset + place * kSliceGroups, slice.offset, sizeof slice.offset);
    });
}

// Multiplies kRows packed rows by kInputs inputs.
template <typename Format, int kRows, int kInputs>
static inline void multiply_packed(const QuantisedProduct& product, const PackedRows& packed,
                                   int64_t row, int64_t first_row, int64_t input) {
  constexpr int kGroups = int(kSliceElements / Format::kGroup);
  const QuantisedInputs& inputs = product.inputs;
  const int64_t slices = inputs.slices;
  const int64_t first_weights = (row - first_row) * slices;
  Vec totals[kRows][kInputs];
  for (auto& of_row : totals)
    for (Vec& total : of_row) total = zero();
  for (int64_t slice = 0; slice < slices; ++slice) {
    const int64_t place = first_weights + slice;
    const int64_t input_place = input * slices + slice;
    const int16_t* const weights = packed.numbers + place * kSliceElements;
    const int16_t* const numbers = inputs.numbers + input_place * kSliceElements;
    IntVec sums[kRows][kInputs];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < kInputs; ++i) sums[r][i] = int_zero();
    // Unrolled further, the compiler sums in another order and runs out of registers.
#pragma GCC unroll 1
    for (int64_t k = 0; k < kSliceElements; k += kIntLanes) {
      IntVec of_rows[kRows];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r)
        of_rows[r] = load_int16(weights + r * slices * kSliceElements + k);
#pragma GCC unroll 4
      for (int i = 0; i < kInputs; ++i) {
        IntVec of_input = load_int16(numbers + i * slices * kSliceElements + k);
        keep_in_register(of_input);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) sums[r][i] = add_products(sums[r][i], of_rows[r], of_input);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int i = 0; i < kInputs; ++i) {
        const int64_t groups = (input_place + i * slices) * kSliceGroups;
        const Vec factor = broadcast(packed.scale[place + r * slices] * inputs.scale[groups]);
        totals[r][i] = mul_add(factor, to_floats(sums[r][i]), totals[r][i]);
        if (!Format::kHasOffset) continue;
        const float* const offset = packed.offset + (place + r * slices) * kSliceGroups;
        for (int k = 0; k < kGroups; k += kLanes)
          totals[r][i] = mul_add(load(offset + k), load(inputs.sum + groups + k), totals[r][i]);
      }
  }
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kInputs; ++i)
      write_element(product.output, product.dtype, (input + i) * product.matrix.rows + row + r,
                    reduce_add(totals[r][i]));
}

// Multiplies all packed rows by kInputs inputs, which stay in the first-level cache meanwhile.
template <typename Format, int kInputs>
static void multiply_panel(const QuantisedProduct& product, const PackedRows& packed,
                           int64_t first_row, int64_t last_row, int64_t input) {
  int64_t row = first_row;
  for (; row + 2 <= last_row; row += 2)
    multiply_packed<Format, 2, kInputs>(product, packed, row, first_row, input);
  if (row < last_row) multiply_packed<Format, 1, kInputs>(product, packed, row, first_row, input);
}

// Computes some rows of the matrix for many inputs; each thread has `packed` of its own.
template <typename Format>
static void multiply_many(const QuantisedProduct& product, const PackedRows& packed,
                          int64_t first_row, int64_t last_row) {
  pack_rows<Format>(product.matrix, first_row, last_row, product.inputs.slices, packed);
  const int64_t inputs = product.inputs.rows;
  int64_t input = 0;
  for (; input + 4 <= inputs; input += 4)
    multiply_panel<Format, 4>(product, packed, first_row, last_row, input);
  for (; input < inputs; ++input)
    multiply_panel<Format, 1>(product, packed, first_row, last_row, input);
}

// Computes some rows of the matrix for all inputs.
static void multiply_rows(const QuantisedProduct& product, const PackedRows& packed,
                          int64_t first_row, int64_t last_row) {
  with_format(product.matrix.format, [&](auto blocks) {
    using Format = decltype(blocks);
    const int64_t inputs = product.inputs.rows;
    if (product.inputs.is_many) return multiply_many<Format>(product, packed, first_row, last_row);
    int64_t input = 0;
    for (; input + 8 <= inputs; input += 8)
      multiply_rows_by<Format, 8>(product, first_row, last_row, input);
    for (; input + 2 <= inputs; input += 2)
      multiply_rows_by<Format, 2>(product, first_row, last_row, input);
    if (input < inputs) multiply_rows_by<Format, 1>(product, first_row, last_row, input);
  });
}

// ---- Dequantisation ----

static void dequantise_rows(const QuantisedMatrix& matrix, int64_t first_row, int64_t last_row,
                            void* output, Dtype dtype) {
  with_format(matrix.format, [&](auto blocks) {
    using Format = decltype(blocks);
    constexpr int kGroup = Format::kGroup;
    UnpackedSlice slice;
    for (int64_t row = first_row; row < last_row; ++row)
      for_each_slice<Format>(matrix, row, slice, [&](int64_t number, int groups) {
        const int64_t begin = row * matrix.columns + number * kSliceElements;
        alignas(64) float weights[kSliceElements];
        float* const to = dtype == Dtype::float32 ? static_cast<float*>(output) + begin : weights;
        for (int k = 0; k < groups; ++k)
          for (int n = k * kGroup; n < (k + 1) * kGroup; ++n)
            to[n] = slice.scale[k] * float(slice.numbers[n]) + slice.offset[k];
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
