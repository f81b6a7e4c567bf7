// Every size that was chosen by measurement, with its unit in the name and the reason beside it. The sizes of register
// tiles are in targets/, because each instruction set has its own.
#pragma once

#include <cstdint>

namespace keywise {

// ---- Blocks of keys ----

// Keys of a block: the scores of a tile, 12 rows x 256 keys x 4 bytes, stay in the first-level cache. The value is part of
// the definition of the result's bits.
constexpr int64_t kBlockKeys = 256;
// Keys of a score buffer at most: a running maximum per block was slower, because each block pays for its own maximum, sum
// and rescaling; longer buffers leave the second-level cache.
constexpr int64_t kScoreBufferKeys = 8 * kBlockKeys;
// Packed rows are padded to this many floats, a multiple of every target's vector width.
constexpr int64_t kPadFloats = 16;

}  // namespace keywise
