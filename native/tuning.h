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

// ---- Scheduling ----

// Query rows of a query block: many enough to pay for reading a block of keys, few enough that
// their state stays in L2.
constexpr int64_t kMaxBlockRows = 240;
// With fewer rows the cost of reading keys would dominate.
constexpr int64_t kMinBlockRows = 24;
// Rows of a query block are a multiple of this: every target's tiles then are full but for the
// last.
constexpr int64_t kBlockRowStep = 12;
// The scores of a query block should stay in L2, beside a block of keys and values. Rows with
// statistics keep the weights of all their keys.
constexpr int64_t kMaxBufferFloats = (384 << 10) / int64_t(sizeof(float));
constexpr int64_t kMinBufferRows = 12;

// Heads with at most this many query rows (decoding, a question after a document) are split by keys
// where these are at least kMinManyKeys: one task per head would leave cores idle and stream all
// keys through one core.
constexpr int64_t kMaxSplitRows = 192;
constexpr int64_t kMinManyKeys = 16 * kBlockKeys;
// With fewer heads and fewer rows than these there are too few other tasks, and any number of keys
// is split.
constexpr int64_t kMaxFewRows = 64;
constexpr int64_t kMaxFewHeads = 16;
// Keys of one split: long enough that merging costs little.
constexpr int64_t kSplitKeys = 4 * kBlockKeys;

// Tasks to aim for, so that any usual number of cores has work to the end.
constexpr int64_t kMinTasks = 8;
// Heads whose packed keys are in use at the same time have at most this many tasks and this many
// bytes of keys and values. Weights that wait for statistics take no more bytes either.
constexpr int64_t kMaxTasksAtOnce = 64;
constexpr int64_t kMaxBytesAtOnce = 16 << 20;
// With fewer query blocks per head, every task packs keys for itself: packing once costs one more
// step of all threads.
constexpr int64_t kMinSharingBlocks = 5;
// Partials and weights of heads that are split by keys wait for the rest of their head. Per thread
// they should stay in L2; with two tasks per thread no thread idles long, however many bytes these
// need.
constexpr int64_t kWaitingBytesPerThread = 512 << 10;
constexpr int64_t kMinTasksPerThread = 2;
// Memory that a thread keeps for its next call: fresh pages cost more than a small attention.
constexpr int64_t kMaxKeptBytes = 8 << 20;

// Work is counted in multiplications; reading one number of a key or value takes as long as this
// many.
constexpr int64_t kReadWork = 8;
// With less work than this, a second thread costs more than it brings.
constexpr int64_t kMinThreadedWork = 1 << 18;
// With less work than this, waking a sleeping thread costs more than it brings.
constexpr int64_t kMinWakingWork = 1 << 21;
// Tasks with less work than this are handed out several at a time.
constexpr int64_t kMinHandedOutWork = 1 << 17;

// ---- Gradients ----

// Rows of a query block of the backward pass: many enough that sums of key gradients are loaded and
// stored rarely, few enough that two matrices of rows x block keys stay in the second-level cache.
constexpr int64_t kGradientBlockRows = 48;
// Rows that one task packs; a multiple of a query block.
constexpr int64_t kGradientChunkRows = 240;
// Tasks of a call to aim for, so that any usual number of cores has work to the end although masks
// make tasks unequal.
constexpr int64_t kMinGradientTasks = 16;
// As many heads run at once as have this many tasks or bytes per thread: each step waits for the
// one before it, and what it wrote should still be in L2.
constexpr int64_t kGradientTasksPerThread = 2;
constexpr int64_t kGradientBytesPerThread = 2 << 20;
// Rows of a head are split only where there are few other tasks, and into no fewer than these.
constexpr int64_t kMinGradientSplitRows = 2 * kGradientChunkRows;

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

// Fewer bytes of a head's keys than these are not prefetched: in a short call the instructions cost
// more than the CPU's own prefetching misses.
constexpr int64_t kMinPrefetchedBytes = 64 << 10;
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
