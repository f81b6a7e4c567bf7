// The threads that torch already has. Its OpenMP keeps them awake for milliseconds after every
// operation, and workers of our own would share the cores with them.
#pragma once

#include <functional>

namespace keywise {

// Absent: torch is not loaded or without GNU's entry points, it has another number of threads, or
// the process is a forked child, in which OpenMP waits for threads that do not exist there. Taken:
// another caller runs on them.
enum class Team { absent, busy, done };

// Calls work(number) on `threads` threads of torch's, which keep their numbers; the caller is 0.
// Done: all returned.
Team run_on_torchs_threads(int threads, const std::function<void(int)>& work);

}  // namespace keywise
