#include "team.h"

#include <atomic>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#endif

namespace keywise {

#if defined(__linux__)
namespace {

// https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html; LLVM's and Intel's
// OpenMP have it too.
struct OpenMp {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*max_threads)();  // of the calling thread, as torch set it
  int (*number)();       // of the calling thread in the team, 0 for the one that called
};

std::atomic<const OpenMp*> known_openmp{nullptr};
std::atomic<unsigned long long> loads_seen{0};
std::atomic<bool> busy{false};
std::atomic<bool> forked{false};

// Returns how many libraries have been loaded so far.
unsigned long long count_loads() {
  unsigned long long count = 0;
  const auto first = [](dl_phdr_info* info, std::size_t, void* into) {
    *static_cast<unsigned long long*>(into) = info->dlpi_adds;
    return 1;
  };
  dl_iterate_phdr(first, &count);
  return count;
}

// Returns the OpenMP that torch is linked with, which need not be the only one in the process.
const OpenMp* find_openmp() {
  if (const OpenMp* openmp = known_openmp) return openmp;
  const unsigned long long now = count_loads();
  if (loads_seen.exchange(now) == now) return nullptr;
  void* const torch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  if (!torch) return nullptr;
  static OpenMp openmp;
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(dlsym(torch, "GOMP_parallel"));
  openmp.max_threads =
      reinterpret_cast<decltype(openmp.max_threads)>(dlsym(torch, "omp_get_max_threads"));
  openmp.number = reinterpret_cast<decltype(openmp.number)>(dlsym(torch, "omp_get_thread_num"));
  if (!openmp.parallel || !openmp.max_threads || !openmp.number) return nullptr;
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  return known_openmp = &openmp;
}

}  // namespace

TeamResult run_on_torch_threads(int threads, const std::function<void(int)>& work) {
  const OpenMp* const openmp = find_openmp();
  if (!openmp || forked || openmp->max_threads() != threads) return TeamResult::absent;
  if (busy.exchange(true)) return TeamResult::busy;
  struct Member {
    const std::function<void(int)>& work;
    int (*number)();
  } member{work, openmp->number};
  const auto call = [](void* data) {
    const Member& member = *static_cast<Member*>(data);
    member.work(member.number());
  };
  openmp->parallel(call, &member, unsigned(threads), 0);
  busy = false;
  return TeamResult::done;
}
#else
TeamResult run_on_torch_threads(int, const std::function<void(int)>&) { return TeamResult::absent; }
#endif

}  // namespace keywise
