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

// https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html; LLVM's and Intel's OpenMP have it too.
struct OpenMp {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*most_threads)();  // of the calling thread, as torch set it
  int (*number)();        // of the calling thread in the team, 0 for the one that called
};

std::atomic<const OpenMp*> found{nullptr};
std::atomic<unsigned long long> loads_seen{0};
std::atomic<bool> taken{false}, forked{false};

// How many libraries have been loaded so far.
unsigned long long loads() {
  unsigned long long count = 0;
  const auto first = [](dl_phdr_info* info, std::size_t, void* into) {
    *static_cast<unsigned long long*>(into) = info->dlpi_adds;
    return 1;
  };
  dl_iterate_phdr(first, &count);
  return count;
}

// The OpenMP that torch is linked with, which need not be the only one in the process.
const OpenMp* torchs_openmp() {
  if (const OpenMp* openmp = found) return openmp;
  const unsigned long long now = loads();
  if (loads_seen.exchange(now) == now) return nullptr;
  void* const torch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  if (!torch) return nullptr;
  static OpenMp openmp;
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(dlsym(torch, "GOMP_parallel"));
  openmp.most_threads = reinterpret_cast<decltype(openmp.most_threads)>(dlsym(torch, "omp_get_max_threads"));
  openmp.number = reinterpret_cast<decltype(openmp.number)>(dlsym(torch, "omp_get_thread_num"));
  if (!openmp.parallel || !openmp.most_threads || !openmp.number) return nullptr;
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  return found = &openmp;
}

}  // namespace

Team run_on_torchs_threads(int threads, const std::function<void(int)>& work) {
  const OpenMp* const openmp = torchs_openmp();
  if (!openmp || forked || openmp->most_threads() != threads) return Team::absent;
  if (taken.exchange(true)) return Team::taken;
  struct Member {
    const std::function<void(int)>& work;
    int (*number)();
  } member{work, openmp->number};
  const auto call = [](void* data) {
    const Member& member = *static_cast<Member*>(data);
    member.work(member.number());
  };
  openmp->parallel(call, &member, unsigned(threads), 0);
  taken = false;
  return Team::done;
}
#else
Team run_on_torchs_threads(int, const std::function<void(int)>&) { return Team::absent; }
#endif

}  // namespace keywise
