// The threads that torch already has. Its OpenMP keeps them awake for milliseconds after every
// operation, and workers of our own would share the cores with them.
#pragma once

#include <functional>

namespace keywise {

// Finds torch's threads. To be called when torch is loaded; every call but the first returns at
// once.
void find_torch_threads();

enum class TeamResult {
  // Torch's threads were not found, torch has another number of them, or the process may lack them
  // because it was forked.
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
