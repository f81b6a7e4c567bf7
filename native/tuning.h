// Every size that was chosen by measurement, with its unit in the name and the reason beside it.
// The sizes of register tiles are in targets/, because each instruction set has its own.
#pragma once

#include <cstdint>

namespace keywise {

// ---- Blocks of keys ----

// Keys of a block: the scores of a tile, 12 rows x 256 keys x 4 bytes, stay in the first-level
// cache.
constexpr int64_t kBlockKeys = 256;
// Keys of a score buffer at most: a running maximum per block was slower, because each block pays
// for its own maximum, sum and rescaling; longer buffers leave the second-level cache.
constexpr int64_t kScoreBufferKeys = 8 * kBlockKeys;
// Packed rows are padded to this many floats, a multiple of every target's vector width.
constexpr int64_t kPadFloats = 16;

// ---- Keys and values in place or packed ----

// Rows that are scored against keys in place: up to this many the accumulators of four keys fit the
// registers, and packing a block of keys takes longer than it saves.
constexpr int64_t kMaxRowsInPlace = 4;
// Tiles of rows that read values in place: more of them repay a copy, sooner where each read
// converts to float32.
constexpr int64_t kMaxTilesInPlace = 1;
constexpr int64_t kMaxFloat32TilesInPlace = 4;
// Rows that take twice as many columns of values at once: their accumulators fit the registers, and
// a row of values is read from end to end, which the CPU's prefetchers follow.
constexpr int kMaxWideRows = 2;

// ---- Memory ----

// Keys read in place are prefetched this far ahead, in the order of their addresses: the CPU's
// prefetchers lose track where several keys are read side by side.
constexpr int64_t kKeyPrefetchBytes = 6144;
// One row reads keys of at least this size one after the other, because the CPU's prefetchers
// follow a single long stream.
constexpr int64_t kSequentialKeyBytes = 256;
// Values read in place are taken this many bytes at a time, which stay in the first-level cache
// over all tiles of columns.
constexpr int64_t kValueCacheBytes = 8192;
constexpr int64_t kMinValueCacheKeys = 8;

// ---- Rounding ----

// Products that are added up in one chain of scores: rounding errors grow with the length of a
// chain, so longer sums are sums of chains.
constexpr int64_t kMaxChainProducts = 128;
constexpr int64_t kMaxChainPairs = 64;

// ---- Top k ----

// Candidates beyond 2 x top_k that wait until they are ranked: ranking costs their number squared.
constexpr int64_t kSpareCandidates = 64;

}  // namespace keywise
