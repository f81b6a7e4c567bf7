// Threads: those of torch where it is loaded, else a pool of workers. Workers stay awake for some
// microseconds after their work and then sleep, so that other pools keep the cores.
#pragma once

#include <cstdint>
#include <functional>

#include "core.h"

namespace keywise {

// Calls work(0) .. work(count - 1), each once, on at most `threads` threads, the caller among them.
// Without `wakes`, threads that may sleep are left alone, except where calls follow each other
// closely. After an exception or an interruption, calls that have begun finish and no more begin:
// the exception is thrown again here, the interruption returns false.
bool parallel_for(int64_t count, int threads, bool wakes, const std::function<void(int64_t)>& work,
                  Interrupted interrupted);

}  // namespace keywise
