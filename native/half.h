// Single numbers of float16 and bfloat16 to and from float32, exact or rounded to nearest, ties to
// even.
#pragma once

#include <cstdint>

#include "target_name.h"

namespace keywise::KEYWISE_TARGET {

static inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float widen_bfloat16(uint16_t bits) { return bits_to_float(uint32_t(bits) << 16); }

static inline float widen_float16(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u;
  const uint32_t fraction = bits & 0x3ffu;
  // Infinity and NaN.
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (fraction << 13));
  if (exponent) return bits_to_float(sign | ((exponent + 112) << 23) | (fraction << 13));
  // Zero and subnormal numbers: fraction x 2^-24.
  return bits_to_float(sign | float_to_bits(float(fraction) * 0x1p-24f));
}

static inline uint16_t narrow_to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t nan = (bits >> 16) | 0x40u;
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Without a branch, so that loops over numbers become loops over vectors.
  return uint16_t(is_nan ? nan : rounded);
}

static inline uint16_t narrow_to_float16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t size = bits & 0x7fffffffu;
  const bool is_nan = size > 0x7f800000u;
  if (is_nan) return uint16_t(sign | 0x7e00u);
  // From 65520 on, numbers round past the largest finite float16 to infinity.
  if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  // Normal numbers begin at 2^-14.
  if (size >= 0x38800000u)
    return uint16_t(sign | ((size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13));
  // Subnormal: the last bit of 0.5 in float32 is 2^-24, that of a subnormal float16, so adding 0.5
  // rounds there.
  return uint16_t(sign | (float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000u));
}

}  // namespace keywise::KEYWISE_TARGET
