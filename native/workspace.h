// Memory for tasks and calls: aligned allocations, the layout of buffers inside them, and memory
// that each thread keeps.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "checked.h"
#include "integers.h"
#include "problem.h"
#include "target.h"

namespace keywise {

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};
using AlignedMemory = std::unique_ptr<void, FreeMemory>;

// Returns memory aligned to a cache line; throws std::bad_alloc.
AlignedMemory allocate_aligned(int64_t bytes);

// Places arrays one after the other, each aligned to a cache line. Without memory it only counts
// their bytes, so the same code computes the size and then sets the pointers.
class BufferLayout {
 public:
  explicit BufferLayout(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  void add(T*& array, int64_t count) {
    if (count > kMaxCount) throw SizeOverflow();
    if (memory_) array = reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ = checked_add(bytes_, round_up(count * int64_t(sizeof(T)), kAlignmentBytes));
  }

  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignmentBytes = 64;
  // More elements than memory has addresses, and few enough that their bytes fit 64 bits.
  static constexpr int64_t kMaxCount = int64_t(1) << 56;
  char* memory_;
  int64_t bytes_ = 0;
};

void add_state(BufferLayout& layout, State& state, const Problem& problem, int64_t rows);
void add_score_buffer(BufferLayout& layout, ScoreBuffer& buffer, int64_t rows, int64_t tile_rows);
// A task whose keys and values come packed needs no room for them.
void add_workspace(BufferLayout& layout, Workspace& workspace, const Problem& problem, int64_t rows,
                   int64_t tile_rows, bool packs_keys);
void add_packed_head(BufferLayout& layout, PackedHead& packed, const Problem& problem, bool pairs);

// Returns a score buffer of the right sizes, without memory. Only one that keeps its weights for
// statistics has segment ranges to sum.
ScoreBuffer make_score_buffer(const Problem& problem, int64_t first_key, int64_t key_count,
                              bool keeps_weights);

// Return the state and the score buffer without their first rows. Of the score buffer, only the
// arrays without an axis of blocks are advanced. `rows` must be a multiple of `tile_rows`.
State skip_rows(const State& state, int64_t rows, const Problem& problem);
ScoreBuffer skip_rows(const ScoreBuffer& buffer, int64_t rows, int64_t tile_rows);

// Memory that a thread keeps between calls: fresh pages would cost more than a small attention.
class ScratchMemory {
 public:
  // Returns at least this many bytes; what the memory held is lost where it has to grow.
  void* reserve(int64_t bytes);

  void* get() const { return memory_.get(); }
  int64_t bytes() const { return bytes_; }

  // Sets pointers into the memory. `lay_out` adds arrays to a layout and returns its bytes; it is
  // called a second time where the memory has to grow.
  template <typename LayOut>
  void place(const LayOut& lay_out) {
    const int64_t bytes = lay_out(BufferLayout(memory_.get()));
    if (bytes > bytes_) lay_out(BufferLayout(reserve(bytes)));
  }

 private:
  AlignedMemory memory_;
  int64_t bytes_ = 0;
};

// Returns this thread's memory for the task that it runs. No call begins while a task runs.
ScratchMemory& task_scratch();

// Memory of a call. Unless it is large, the thread keeps it for its next call. A call that begins
// during another one in the same thread, from a signal handler, gets memory of its own.
class CallMemory {
 public:
  explicit CallMemory(int64_t bytes);
  ~CallMemory();
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;

  void* get() const { return memory_.get(); }

 private:
  ScratchMemory memory_;
};

}  // namespace keywise
