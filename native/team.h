// The threads that torch already has. Its OpenMP keeps them awake for milliseconds after every
// operation, and workers of our own would share the cores with them.
#pragma once

#include <functional>

namespace keywise {

enum class TeamResult {
  // torch is not loaded or lacks GNU's entry points, it has another number of threads, or the
  // process is a forked child, in which OpenMP would wait for threads that do not exist there.
  absent,
  // Another caller runs on the threads.
  busy,
  // All calls returned.
  done,
};

// Calls work(number) on `threads` threads of torch. A thread has the same number in every call; the
// caller is 0.
TeamResult run_on_torch_threads(int threads, const std::function<void(int)>& work);

}  // namespace keywise
