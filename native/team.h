// The threads that torch already has. Its OpenMP keeps them awake for milliseconds after every operation: workers of our
// own would have to share the cores with them.
#pragma once

namespace keywise {

// Absent: torch is not loaded or without GNU's entry points, it has another number of threads, or the process is a forked
// child, in which OpenMP would wait for threads that do not exist there. Taken: they have work from another caller.
enum class Team { absent, taken, done };

// Calls work(data) on `threads` threads of torch's, the caller among them; done once all have returned.
Team run_on_torchs_threads(int threads, void (*work)(void*), void* data);

}  // namespace keywise
