// Arithmetic on sizes that callers choose: what does not fit 64 bits throws instead of wrapping.
#pragma once

#include <cstdint>
#include <new>

#include "always_inline.h"

namespace keywise {

// No memory holds so much: Python raises MemoryError, as for an allocation that fails.
struct SizeOverflow : std::bad_alloc {
  const char* what() const noexcept override {
    return "the sizes of the arguments exceed what 64 bits can address";
  }
};

KEYWISE_INLINE constexpr int64_t checked_multiply(int64_t a, int64_t b) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) throw SizeOverflow();
  return product;
}

template <typename... Rest>
KEYWISE_INLINE constexpr int64_t checked_multiply(int64_t a, int64_t b, Rest... rest) {
  return checked_multiply(checked_multiply(a, b), rest...);
}

KEYWISE_INLINE constexpr int64_t checked_add(int64_t a, int64_t b) {
  int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) throw SizeOverflow();
  return sum;
}

// `step` must be positive.
KEYWISE_INLINE constexpr int64_t checked_round_up(int64_t number, int64_t step) {
  return checked_add(number, step - 1) / step * step;
}

}  // namespace keywise
