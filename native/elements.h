// Elements of any dtype as float32, or as pairs of bfloat16. Tail rule: zeros behind the last
// element; nothing beyond it is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "half.h"
#include "simd.h"

namespace keywise::KEYWISE_TARGET {

static inline float read_element(const void* data, Dtype dtype, int64_t index) {
  if (dtype == Dtype::float32) return static_cast<const float*>(data)[index];
  if (dtype == Dtype::int8) return float(static_cast<const int8_t*>(data)[index]);
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == Dtype::float16 ? widen_float16(bits) : widen_bfloat16(bits);
}

// Loads kLanes elements.
template <Dtype kDtype>
static inline Vec load_as(const char* row, int64_t index) {
  if constexpr (kDtype == Dtype::float32) return load(reinterpret_cast<const float*>(row) + index);
  if constexpr (kDtype == Dtype::int8)
    return load_int8(reinterpret_cast<const int8_t*>(row) + index);
  const uint16_t* source = reinterpret_cast<const uint16_t*>(row) + index;
  return kDtype == Dtype::bfloat16 ? load_bfloat16(source) : load_float16(source);
}

// Loads up to kLanes elements.
static inline Vec load_elements(const char* row, Dtype dtype, int64_t index, int64_t count) {
  if (dtype == Dtype::float32) {
    const float* source = reinterpret_cast<const float*>(row) + index;
    return count >= kLanes ? load(source) : load_n(source, int(count));
  }
  if (dtype == Dtype::int8) {
    const int8_t* source = reinterpret_cast<const int8_t*>(row) + index;
    if (count >= kLanes) return load_int8(source);
    int8_t padded[kLanes];
    __builtin_memset(padded, 0, sizeof padded);
    __builtin_memcpy(padded, source, std::size_t(count));
    return load_int8(padded);
  }
  const uint16_t* source = reinterpret_cast<const uint16_t*>(row) + index;
  uint16_t padded[kLanes];
  if (count < kLanes) {
    __builtin_memset(padded, 0, sizeof padded);
    __builtin_memcpy(padded, source, std::size_t(count) * sizeof(uint16_t));
    source = padded;
  }
  return dtype == Dtype::bfloat16 ? load_bfloat16(source) : load_float16(source);
}

// Loads up to 2 kLanes bfloat16 or int8 elements as kLanes pairs of bfloat16, which is exact.
static inline Vec load_pairs(const char* row, Dtype dtype, int64_t index, int64_t count) {
  if (dtype == Dtype::int8) {
    Vec pairs[2];
    load_int8_pairs(reinterpret_cast<const int8_t*>(row) + index, clamp(count, 0, 2 * kLanes),
                    pairs);
    return pairs[0];
  }
  const uint16_t* source = reinterpret_cast<const uint16_t*>(row) + index;
  uint16_t padded[2 * kLanes];
  if (count < 2 * kLanes) {
    __builtin_memset(padded, 0, sizeof padded);
    __builtin_memcpy(padded, source, std::size_t(count) * sizeof(uint16_t));
    source = padded;
  }
  return load(reinterpret_cast<const float*>(source));
}

template <int N>
using Count = std::integral_constant<int, N>;

// How a kernel reads elements: their dtype, and whether as pairs of bfloat16.
template <Dtype kDtype, bool kPairs>
struct Encoding {
  static constexpr Dtype dtype = kDtype;
  static constexpr bool pairs = kPairs;
};

// Calls function(Encoding) with the encoding as a type, so that a kernel is compiled for it.
template <typename Function>
static inline void with_encoding(Dtype dtype, bool pairs, Function function) {
  if (dtype == Dtype::float32) return function(Encoding<Dtype::float32, false>{});
  if (dtype == Dtype::float16) return function(Encoding<Dtype::float16, false>{});
  if (dtype == Dtype::int8) {
    if (pairs) return function(Encoding<Dtype::int8, kHasBf16Dot>{});
    return function(Encoding<Dtype::int8, false>{});
  }
  if (pairs) return function(Encoding<Dtype::bfloat16, kHasBf16Dot>{});
  return function(Encoding<Dtype::bfloat16, false>{});
}

// Returns whether keys and values are taken as pairs of bfloat16.
static inline bool uses_bf16_pairs(const Problem& problem) {
  return kHasBf16Dot && problem.allows_bf16_pairs();
}

// Returns the lanes per packed key: head_dim floats, or half as many pairs of bfloat16.
static inline int64_t key_depth(const Problem& problem, bool pairs) {
  return pairs ? (problem.head_dim + 1) / 2 : problem.head_dim;
}

}  // namespace keywise::KEYWISE_TARGET
