#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "team.h"

namespace keywise {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kInterruptPeriod = std::chrono::milliseconds(20);
// The steps of a run follow each other within microseconds, and waking a sleeping thread takes tens of them; a longer
// wait would take the core from the threads of whatever runs between two calls.
constexpr auto kSpin = std::chrono::microseconds(20);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

template <typename Condition>
void spin_until(Condition condition) {
  const auto end = Clock::now() + kSpin;
  while (!condition() && Clock::now() < end)
    for (int i = 0; i < 16 && !condition(); ++i) relax();
}

// One parallel_for: counters that hand out work, and what went wrong. Every thread begins in a stretch of its own, the
// same in each job: what it left in its caches in one step it finds there in the next.
struct Job {
  Job(int64_t count, int stretches, const std::function<void(int64_t)>& work)
      : count(count), stretches(std::clamp(stretches, 1, kMostStretches)), work(work) {
    for (int i = 0; i < this->stretches; ++i) stretch[i].next = end_of(i - 1);
  }

  static constexpr int kMostStretches = 16;
  struct alignas(64) Stretch {
    std::atomic<int64_t> next;
  };

  const int64_t count;
  const int stretches;
  const std::function<void(int64_t)>& work;
  Stretch stretch[kMostStretches];
  std::atomic<bool> stopped{false};
  std::mutex mutex;
  std::exception_ptr error;

  int64_t end_of(int number) const { return count * (number + 1) / stretches; }

  void stop(std::exception_ptr reason) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!error) error = reason;
    stopped = true;
  }

  // The caller is number 0, and it alone may ask whether it is interrupted.
  void help(int number, Interrupted interrupted) {
    auto asked = Clock::now();
    for (int i = 0; i < stretches && !stopped;) {
      const int here = (number + i) % stretches;
      const int64_t index = stretch[here].next.fetch_add(1);
      if (index >= end_of(here)) {
        ++i;
        continue;
      }
      try {
        work(index);
      } catch (...) {
        stop(std::current_exception());
      }
      if (interrupted && Clock::now() - asked > kInterruptPeriod) {
        asked = Clock::now();
        if (interrupted()) stop(nullptr);
      }
    }
  }
};

// Workers that are awake take work and give it back without the mutex, which is there for those that sleep: waiting for
// a mutex would put them to sleep within microseconds. Either side first says what it wants and then looks at the other.
class Pool {
 public:
  // False when another caller has the workers, or none is awake and waking is not worth it: the caller then does its
  // work alone, with the same result.
  bool help(Job& job, int helpers, bool wakes) {
    if (!wakes && sleepers_ == workers_) return false;
    Job* none = nullptr;
    if (!job_.compare_exchange_strong(none, &job)) return false;
    try {
      for (; wakes && workers_ < helpers; ++workers_) std::thread(&Pool::serve, this, workers_ + 1).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads: those there are do the work, with the same result.
    }
    helpers = std::min<int>(helpers, workers_);
    wanted_ = helpers;
    const int awake = workers_ - sleepers_;
    if (wakes && helpers > awake) {
      // Whoever has looked for work in vain sleeps by now.
      std::unique_lock<std::mutex>(mutex_).unlock();
      for (int i = 0; i < helpers - awake; ++i) wake_.notify_one();
    }
    return true;
  }

  // Takes the job back and waits for the workers that are still in it.
  void finish() {
    wanted_ = 0;
    spin_until([this] { return busy_ == 0; });
    if (busy_ > 0) {
      std::unique_lock<std::mutex> lock(mutex_);
      waits_ = true;
      done_.wait(lock, [this] { return busy_ == 0; });
      waits_ = false;
    }
    job_ = nullptr;
  }

 private:
  void serve(int number) {
    for (;;) {
      spin_until([this] { return wanted_ > 0; });
      if (wanted_ == 0) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleepers_;
        wake_.wait(lock, [this] { return wanted_ > 0; });
        --sleepers_;
      }
      ++busy_;  // first, so that no job ends while it is being taken
      int wanted = wanted_;
      while (wanted > 0 && !wanted_.compare_exchange_weak(wanted, wanted - 1)) {
      }
      if (wanted > 0) job_.load()->help(number, nullptr);
      if (--busy_ == 0 && waits_) {
        const std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<Job*> job_{nullptr};  // of the caller that has the workers
  std::atomic<int> wanted_{0}, busy_{0}, workers_{0}, sleepers_{0};
  std::atomic<bool> waits_{false};
};

// Never destroyed: workers may sleep in it while the process ends. A forked child has no workers and starts anew.
Pool* pool = nullptr;
std::once_flag pool_once;

Pool& the_pool() {
  std::call_once(pool_once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

std::atomic<Clock::rep> ended{0};  // when the last call on several threads did

Clock::rep now() { return Clock::now().time_since_epoch().count(); }

Team team_does(Job& job, int threads, Interrupted interrupted) {
  return run_on_torchs_threads(threads, [&](int number) { job.help(number, number == 0 ? interrupted : nullptr); });
}

void pool_does(Job& job, int helpers, bool wakes, Interrupted interrupted) {
  const bool helped = the_pool().help(job, helpers, wakes);
  job.help(0, interrupted);
  if (helped) the_pool().finish();
}

}  // namespace

bool parallel_for(int64_t count, int threads, bool wakes, const std::function<void(int64_t)>& work,
                  Interrupted interrupted) {
  Job job(count, threads, work);
  if (threads == 1 || count <= 1) {
    job.help(0, interrupted);
  } else {
    // Calls that follow each other closely find the workers awake from the second on.
    wakes = wakes || now() - ended < Clock::duration(kSpin).count();
    const Team team = wakes ? team_does(job, threads, interrupted) : Team::absent;
    if (team == Team::absent)
      pool_does(job, static_cast<int>(std::min<int64_t>(count, threads)) - 1, wakes, interrupted);
    else if (team == Team::taken)
      job.help(0, interrupted);
    ended = now();
  }
  if (job.error) std::rethrow_exception(job.error);
  return !job.stopped;
}

}  // namespace keywise
