// Unpacking of the blocks of each format into small integers, scales and offsets.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"
#include "quantised.h"
#include "simd.h"

namespace keywise::KEYWISE_TARGET {

// A slice of a row: weight = scale x number + offset, with a scale and an offset per group. Groups
// that a format or the end of a row does not have are 0.
struct UnpackedSlice {
  alignas(64) int8_t numbers[kSliceElements] = {};
  alignas(64) float scale[kSliceGroups] = {};
  alignas(64) float offset[kSliceGroups] = {};
  // What all scales are whole multiples of; 0 in formats of 32 elements.
  float unit = 0.0f;
};

static inline uint16_t read_half(const uint8_t* place) {
  uint16_t bits;
  std::memcpy(&bits, place, sizeof bits);
  return bits;
}

static inline float read_scale(const uint8_t* place) { return widen_scale(read_half(place)); }

// Bytes side by side, on which the compiler's operators work lane by lane.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));

template <typename Bytes>
static inline Bytes load_bytes_of(const uint8_t* place) {
  Bytes bytes;
  std::memcpy(&bytes, place, sizeof bytes);
  return bytes;
}
template <typename Bytes>
static inline void store_numbers(int8_t* place, Bytes bytes) {
  std::memcpy(place, &bytes, sizeof bytes);
}

// The scales of up to eight blocks, which lie at a distance from each other. They are put together
// in a register: a vector that is loaded from several stores waits until these have retired.
KEYWISE_INLINE static void read_scales(const uint8_t* blocks, int64_t block_bytes, int64_t count,
                                       float* scales) {
  typedef uint16_t Halves __attribute__((vector_size(2 * kSliceGroups)));
  Halves halves = {};
  if (count == 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) halves[i] = read_half(blocks + i * block_bytes);
  } else {
    for (int64_t i = 0; i < count; ++i) halves[i] = read_half(blocks + i * block_bytes);
  }
  alignas(32) uint16_t bits[kSliceGroups];
  std::memcpy(bits, &halves, sizeof bits);
  for (int i = 0; i < 8; i += kLanes) store(scales + i, load_float16(bits + i));
}

// Writes scale x number for some small integers, a multiple of the lanes.
static inline void multiply_scales(float scale, const int8_t* numbers, int count, float* to) {
  for (int i = 0; i < count; i += kLanes)
    store(to + i, mul(broadcast(scale), load_int8(numbers + i)));
}

// ---- Formats of 32 elements ----

struct SmallFormat {
  static constexpr int64_t kElements = 32;
  static constexpr int kGroup = 32;
};

// The absolute values of a format's numbers are at most kLargestNumber.

// 16 bytes hold the elements 0 .. 15 in their low halves and 16 .. 31 in their high ones.
struct Nibbles {
  Bytes16 low;
  Bytes16 high;
};
static inline Nibbles unpack_nibbles(const uint8_t* place) {
  const Bytes16 bytes = load_bytes_of<Bytes16>(place);
  return {bytes & 15, bytes >> 4};
}
// Stores are as wide as the loads that follow: a vector that lies in two stores is read only after
// both have retired, and joining halves takes time.
static inline void store_nibbles(int8_t* place, Bytes16 low, Bytes16 high) {
  if constexpr (kLanes == 16) {
    const Bytes32 joined =
        __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
                                17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
    store_numbers(place, joined);
  } else {
    store_numbers(place, low);
    store_numbers(place + 16, high);
  }
}

// 16 for the elements whose bit is set, of 16 bits.
static inline Bytes16 spread_fifth_bits(const uint8_t* place) {
  const uint16_t bits = read_half(place);
#ifdef KEYWISE_HAS_BYTE_MASKS
  return (Bytes16)spread_bits(bits);
#else
  typedef uint16_t Words __attribute__((vector_size(16)));
  constexpr Bytes16 kByte = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  constexpr Bytes16 kBit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const Words words = {bits, bits, bits, bits, bits, bits, bits, bits};
  const Bytes16 bytes = __builtin_shuffle((Bytes16)words, kByte);
  return (Bytes16)((bytes & kBit) == kBit) & 16;
#endif
}

struct Q4_0 : SmallFormat {
  static constexpr int64_t kBytes = 18;
  static constexpr float kLargestNumber = 8.0f;
  static constexpr bool kHasOffset = false;
  KEYWISE_INLINE static void unpack(const uint8_t* blocks, int64_t count, UnpackedSlice& slice) {
    read_scales(blocks, kBytes, count, slice.scale);
    for (int64_t i = 0; i < count; ++i) {
      const Nibbles nibbles = unpack_nibbles(blocks + i * kBytes + 2);
      store_nibbles(slice.numbers + i * kElements, nibbles.low - 8, nibbles.high - 8);
    }
  }
};

struct Q4_1 : SmallFormat {
  static constexpr int64_t kBytes = 20;
  static constexpr float kLargestNumber = 15.0f;
  static constexpr bool kHasOffset = true;
  KEYWISE_INLINE static void unpack(const uint8_t* blocks, int64_t count, UnpackedSlice& slice) {
    read_scales(blocks, kBytes, count, slice.scale);
    read_scales(blocks + 2, kBytes, count, slice.offset);
    for (int64_t i = 0; i < count; ++i) {
      const Nibbles nibbles = unpack_nibbles(blocks + i * kBytes + 4);
      store_nibbles(slice.numbers + i * kElements, nibbles.low, nibbles.high);
    }
  }
};

struct Q5_0 : SmallFormat {
  static constexpr int64_t kBytes = 22;
  static constexpr float kLargestNumber = 16.0f;
  static constexpr bool kHasOffset = false;
  KEYWISE_INLINE static void unpack(const uint8_t* blocks, int64_t count, UnpackedSlice& slice) {
    read_scales(blocks, kBytes, count, slice.scale);
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* const block = blocks + i * kBytes;
      const Nibbles nibbles = unpack_nibbles(block + 6);
      store_nibbles(slice.numbers + i * kElements,
                    (nibbles.low | spread_fifth_bits(block + 2)) - 16,
                    (nibbles.high | spread_fifth_bits(block + 4)) - 16);
    }
  }
};

struct Q5_1 : SmallFormat {
  static constexpr int64_t kBytes = 24;
  static constexpr float kLargestNumber = 31.0f;
  static constexpr bool kHasOffset = true;
  KEYWISE_INLINE static void unpack(const uint8_t* blocks, int64_t count, UnpackedSlice& slice) {
    read_scales(blocks, kBytes, count, slice.scale);
    read_scales(blocks + 2, kBytes, count, slice.offset);
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* const block = blocks + i * kBytes;
      const Nibbles nibbles = unpack_nibbles(block + 8);
      store_nibbles(slice.numbers + i * kElements, nibbles.low | spread_fifth_bits(block + 4),
                    nibbles.high | spread_fifth_bits(block + 6));
    }
  }
};

struct Q8_0 : SmallFormat {
  static constexpr int64_t kBytes = 34;
  static constexpr float kLargestNumber = 128.0f;
  static constexpr bool kHasOffset = false;
  KEYWISE_INLINE static void unpack(const uint8_t* blocks, int64_t count, UnpackedSlice& slice) {
    read_scales(blocks, kBytes, count, slice.scale);
    for (int64_t i = 0; i < count; ++i)
      store_numbers(slice.numbers + i * kElements, load_bytes_of<Bytes32>(blocks + i * kBytes + 2));
  }
};

struct IQ4_NL : SmallFormat {
  static constexpr int64_t kBytes = 18;
  static constexpr float kLargestNumber = 127.0f;
  static constexpr bool kHasOffset = false;
  alignas(16) static constexpr int8_t kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                    1,    13,   25,  38,  53,  69,  89,  113};
  KEYWISE_INLINE static void unpack(const uint8_t* blocks, int64_t count, UnpackedSlice& slice) {
    read_scales(blocks, kBytes, count, slice.scale);
    for (int64_t i = 0; i < count; ++i) {
      int8_t* const numbers = slice.numbers + i * kElements;
      const Nibbles nibbles = unpack_nibbles(blocks + i * kBytes + 2);
      store_nibbles(numbers, nibbles.low, nibbles.high);
      look_up(kTable, numbers, kElements);
    }
  }
};

// ---- Formats of 256 elements ----

struct LargeFormat {
  static constexpr int64_t kElements = 256;
};

// The scales and minima of the eight groups of Q4_K and Q5_K have 6 bits each.
static inline void set_group_scales(const uint8_t* block, UnpackedSlice& slice) {
  slice.unit = read_scale(block);
  uint32_t words[3];
  std::memcpy(words, block + 4, sizeof words);
  constexpr uint32_t kLowSix = 0x3f3f3f3f;
  constexpr uint32_t kLowFour = 0x0f0f0f0f;
  constexpr uint32_t kLowTwo = 0x03030303;
  const uint32_t last_scales = (words[2] & kLowFour) | (words[0] >> 6 & kLowTwo) << 4;
  const uint32_t last_minima = (words[2] >> 4 & kLowFour) | (words[1] >> 6 & kLowTwo) << 4;
  // Whole vectors are read: zeros follow, from the same store.
  typedef uint64_t Longs __attribute__((vector_size(16)));
  const Longs scales = {uint64_t(last_scales) << 32 | (words[0] & kLowSix), 0};
  const Longs minima = {uint64_t(last_minima) << 32 | (words[1] & kLowSix), 0};
  alignas(16) int8_t numbers[2][16];
  std::memcpy(numbers[0], &scales, sizeof scales);
  std::memcpy(numbers[1], &minima, sizeof minima);
  multiply_scales(slice.unit, numbers[0], 8, slice.scale);
  multiply_scales(-read_scale(block + 2), numbers[1], 8, slice.offset);
}

struct Q4_K : LargeFormat {
  static constexpr int64_t kBytes = 144;
  static constexpr int kGroup = 32;
  static constexpr float kLargestNumber = 15.0f;
  static constexpr bool kHasOffset = true;
  KEYWISE_INLINE static void unpack(const uint8_t* block, int64_t, UnpackedSlice& slice) {
    set_group_scales(block, slice);
    for (int i = 0; i < 4; ++i) {
      const Bytes32 nibbles = load_bytes_of<Bytes32>(block + 16 + 32 * i);
      store_numbers(slice.numbers + 64 * i, nibbles & 15);
      store_numbers(slice.numbers + 64 * i + 32, nibbles >> 4);
    }
  }
};

struct Q5_K : LargeFormat {
  static constexpr int64_t kBytes = 176;
  static constexpr int kGroup = 32;
  static constexpr float kLargestNumber = 31.0f;
  static constexpr bool kHasOffset = true;
  KEYWISE_INLINE static void unpack(const uint8_t* block, int64_t, UnpackedSlice& slice) {
    set_group_scales(block, slice);
    const Bytes32 fifth_bits = load_bytes_of<Bytes32>(block + 16);
    for (int i = 0; i < 4; ++i) {
      const Bytes32 nibbles = load_bytes_of<Bytes32>(block + 48 + 32 * i);
      const Bytes32 bits = fifth_bits >> 2 * i;
      store_numbers(slice.numbers + 64 * i, (nibbles & 15) | (bits & 1) << 4);
      store_numbers(slice.numbers + 64 * i + 32, nibbles >> 4 | (bits & 2) << 3);
    }
  }
};

struct Q6_K : LargeFormat {
  static constexpr int64_t kBytes = 210;
  static constexpr int kGroup = 16;
  static constexpr float kLargestNumber = 32.0f;
  static constexpr bool kHasOffset = false;
  KEYWISE_INLINE static void unpack(const uint8_t* block, int64_t, UnpackedSlice& slice) {
    slice.unit = read_scale(block + 208);
    multiply_scales(slice.unit, reinterpret_cast<const int8_t*>(block + 192), 16, slice.scale);
    for (int half = 0; half < 2; ++half) {
      const Bytes32 low = load_bytes_of<Bytes32>(block + 64 * half);
      const Bytes32 next_low = load_bytes_of<Bytes32>(block + 64 * half + 32);
      const Bytes32 high = load_bytes_of<Bytes32>(block + 128 + 32 * half);
      int8_t* const numbers = slice.numbers + 128 * half;
      store_numbers(numbers, ((low & 15) | (high & 3) << 4) - 32);
      store_numbers(numbers + 32, ((next_low & 15) | (high & 12) << 2) - 32);
      store_numbers(numbers + 64, (low >> 4 | (high & 48)) - 32);
      store_numbers(numbers + 96, (next_low >> 4 | (high & 192) >> 2) - 32);
    }
  }
};

struct Q2_K : LargeFormat {
  static constexpr int64_t kBytes = 84;
  static constexpr int kGroup = 16;
  static constexpr float kLargestNumber = 3.0f;
  static constexpr bool kHasOffset = true;
  KEYWISE_INLINE static void unpack(const uint8_t* block, int64_t, UnpackedSlice& slice) {
    const Bytes16 bytes = load_bytes_of<Bytes16>(block);
    int8_t numbers[2][kSliceGroups];
    store_numbers(numbers[0], bytes & 15);
    store_numbers(numbers[1], bytes >> 4);
    slice.unit = read_scale(block + 80);
    multiply_scales(slice.unit, numbers[0], 16, slice.scale);
    multiply_scales(-read_scale(block + 82), numbers[1], 16, slice.offset);
    for (int part = 0; part < 8; ++part) {
      const Bytes32 bits = load_bytes_of<Bytes32>(block + 16 + 32 * (part / 4));
      store_numbers(slice.numbers + 32 * part, bits >> 2 * (part % 4) & 3);
    }
  }
};

struct Q3_K : LargeFormat {
  static constexpr int64_t kBytes = 110;
  static constexpr int kGroup = 16;
  static constexpr float kLargestNumber = 4.0f;
  static constexpr bool kHasOffset = false;
  KEYWISE_INLINE static void unpack(const uint8_t* block, int64_t, UnpackedSlice& slice) {
    int8_t scales[kSliceGroups];
    for (int i = 0; i < 16; ++i) {
      const int low = i < 8 ? block[96 + i] & 15 : block[88 + i] >> 4;
      const int high = block[104 + i % 4] >> 2 * (i / 4) & 3;
      scales[i] = int8_t((low | high << 4) - 32);
    }
    slice.unit = read_scale(block + 108);
    multiply_scales(slice.unit, scales, 16, slice.scale);
    const Bytes32 third_bits = load_bytes_of<Bytes32>(block);
    for (int part = 0; part < 8; ++part) {
      const Bytes32 bits = load_bytes_of<Bytes32>(block + 32 + 32 * (part / 4));
      // An element whose third bit is not set is 4 less.
      const Bytes32 third = (third_bits >> part & 1) << 2;
      store_numbers(slice.numbers + 32 * part, ((bits >> 2 * (part % 4) & 3) | third) - 4);
    }
  }
};

// Calls function(Format()) with the format as a type, so that a kernel is compiled for it.
template <typename Function>
static inline void with_format(BlockFormat format, Function function) {
  switch (format) {
    case BlockFormat::q4_0:
      return function(Q4_0());
    case BlockFormat::q4_1:
      return function(Q4_1());
    case BlockFormat::q5_0:
      return function(Q5_0());
    case BlockFormat::q5_1:
      return function(Q5_1());
    case BlockFormat::q8_0:
      return function(Q8_0());
    case BlockFormat::q2_k:
      return function(Q2_K());
    case BlockFormat::q3_k:
      return function(Q3_K());
    case BlockFormat::q4_k:
      return function(Q4_K());
    case BlockFormat::q5_k:
      return function(Q5_K());
    case BlockFormat::q6_k:
      return function(Q6_K());
    case BlockFormat::iq4_nl:
      return function(IQ4_NL());
  }
}

}  // namespace keywise::KEYWISE_TARGET
