// The threads that torch already has. Its OpenMP keeps them awake for milliseconds after every operation: workers of our
// own would have to share the cores with them.
#pragma once

#include <functional>

namespace keywise {

// Absent: torch is not loaded or without GNU's entry points, it has another number of threads, or the process is a forked
// child, in which OpenMP would wait for threads that do not exist there. Taken: they have work from another caller.
enum class Team { absent, taken, done };

// Calls work(number) on `threads` threads of torch's, which keep their numbers; the caller is 0. Done once all returned.
Team run_on_torchs_threads(int threads, const std::function<void(int)>& work);

}  // namespace keywise
