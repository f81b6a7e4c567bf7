#include "team.h"

#include <atomic>

#if defined(__linux__)
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#endif

namespace keywise {

#if defined(__linux__)
namespace {

// https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html; LLVM's and Intel's
// OpenMP have it too.
struct OpenMp {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*max_threads)();          // of the calling thread, as torch set it
  void (*set_max_threads)(int);  // likewise
  int (*number)();               // of the calling thread in the team, 0 for the one that called
};

std::atomic<bool> searched{false};
std::atomic<const OpenMp*> found{nullptr};
std::atomic<bool> busy{false};

// Returns whether this process was forked and has executed no program since. It then lacks the
// threads that OpenMP may have started before, and OpenMP would wait for them for ever.
bool is_forked() {
  constexpr unsigned kForkedButNotExecuted = 0x40;  // PF_FORKNOEXEC of Linux
  char text[512] = "";
  if (std::FILE* const file = std::fopen("/proc/self/stat", "r")) {
    text[std::fread(text, 1, sizeof text - 1, file)] = '\0';
    std::fclose(file);
  }
  // The name of the program, in parentheses, may hold any characters.
  const char* const after_name = std::strrchr(text, ')');
  unsigned flags = 0;
  if (after_name) std::sscanf(after_name, ") %*c %*d %*d %*d %*d %*d %u", &flags);
  return flags & kForkedButNotExecuted;
}

template <typename Function>
bool find_function(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace

void find_torch_threads() {
  if (searched.exchange(true) || is_forked()) return;
  // Torch's OpenMP need not be the only one in the process.
  void* const torch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  if (!torch) return;
  static OpenMp openmp;
  if (find_function(torch, "GOMP_parallel", openmp.parallel) &&
      find_function(torch, "omp_get_max_threads", openmp.max_threads) &&
      find_function(torch, "omp_set_num_threads", openmp.set_max_threads) &&
      find_function(torch, "omp_get_thread_num", openmp.number))
    found = &openmp;
}

TeamResult run_on_torch_threads(int threads, const std::function<void(int)>& work) {
  const OpenMp* const openmp = found;
  if (!openmp || openmp->max_threads() != threads) return TeamResult::absent;
  if (busy.exchange(true)) return TeamResult::busy;
  struct Region {
    const OpenMp& openmp;
    const std::function<void(int)>& work;
    int before;  // the caller's maximum in the region
    int after;
  } region{*openmp, work, 0, 0};
  const auto call = [](void* data) {
    Region& region = *static_cast<Region*>(data);
    const int number = region.openmp.number();
    if (number == 0) region.before = region.openmp.max_threads();
    region.work(number);
    if (number == 0) region.after = region.openmp.max_threads();
  };
  openmp->parallel(call, &region, unsigned(threads), 0);
  busy = false;
  // OpenMP forgets what a signal handler set in the region.
  if (region.after != region.before) openmp->set_max_threads(region.after);
  return TeamResult::done;
}
#else
void find_torch_threads() {}
TeamResult run_on_torch_threads(int, const std::function<void(int)>&) { return TeamResult::absent; }
#endif

}  // namespace keywise
