// Arithmetic on sizes and indices.
#pragma once

#include <cstdint>

#include "always_inline.h"

namespace keywise {

KEYWISE_INLINE constexpr int64_t min(int64_t a, int64_t b) { return b < a ? b : a; }
KEYWISE_INLINE constexpr int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }
KEYWISE_INLINE constexpr int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return max(low, min(value, high));
}
KEYWISE_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
KEYWISE_INLINE constexpr int64_t round_down(int64_t number, int64_t step) {
  return number / step * step;
}
KEYWISE_INLINE constexpr int64_t round_up(int64_t number, int64_t step) {
  return ceil_div(number, step) * step;
}

// For numbers of 0 or more: the largest integer where the product does not fit.
KEYWISE_INLINE constexpr int64_t saturating_multiply(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

}  // namespace keywise
