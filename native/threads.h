// Torch's threads where they are to be had, else a small pool of workers, which stay awake for some microseconds after
// their work, then sleep: other pools keep the cores.
#pragma once

#include <cstdint>
#include <functional>

#include "core.h"

namespace keywise {

// Calls work(0) .. work(count - 1), each once, on at most `threads` threads, the caller among them. Unless it `wakes`
// them, threads that may sleep are left alone, except where calls follow each other closely. After an exception, or when
// `interrupted` says so, calls that have begun are finished and no more begin: the exception is thrown again here, the
// interruption gives false.
bool parallel_for(int64_t count, int threads, bool wakes, const std::function<void(int64_t)>& work,
                  Interrupted interrupted);

}  // namespace keywise
