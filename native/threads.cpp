#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "team.h"

namespace keywise {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kInterruptPeriod = std::chrono::milliseconds(20);
// The steps of a call follow each other within microseconds, and waking a sleeping thread takes
// tens of them; a longer wait would take the core from the threads of whatever runs between two
// calls.
constexpr auto kSpin = std::chrono::microseconds(20);
// Pauses between two readings of the clock.
constexpr int kPausesPerClockRead = 16;

// Forks that lie between the process that loaded this library and the current one. A forked process
// has one thread only: that which forked.
std::atomic<int> fork_count{0};

// Thrown where a signal handler forked during a job on several threads: the new process lacks the
// threads that had begun tasks.
struct ForkedDuringJob {};

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

template <typename Condition>
void spin_until(Condition condition) {
  const auto end = Clock::now() + kSpin;
  while (!condition() && Clock::now() < end)
    for (int i = 0; i < kPausesPerClockRead && !condition(); ++i) relax();
}

// One parallel_for: counters that hand out tasks, and the first error. A queue holds consecutive
// tasks. A thread begins with the same queue in each job, so it finds in its caches what it left
// there one step before; then it helps with the other queues.
struct Job {
  Job(int64_t count, int queues, const std::function<void(int64_t)>& work)
      : count(count), queues(std::clamp(queues, 1, kMaxQueues)), work(work) {
    for (int i = 0; i < this->queues; ++i) queue[i].next = end_of(i - 1);
  }

  // More threads share queues: a job lies on the caller's stack, and every thread visits all
  // queues.
  static constexpr int kMaxQueues = 16;
  // A cache line of its own: threads must not wait for each other's counters.
  struct alignas(64) Queue {
    std::atomic<int64_t> next;
  };

  const int64_t count;
  const int queues;
  const std::function<void(int64_t)>& work;
  Queue queue[kMaxQueues];
  std::atomic<bool> stopped{false};
  std::mutex mutex;
  std::exception_ptr error;
  bool is_shared = false;  // with other threads
  bool is_interrupted = false;

  int64_t end_of(int number) const { return count * (number + 1) / queues; }

  void stop(std::exception_ptr reason) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!error) error = std::move(reason);
    stopped = true;
  }

  // Runs signal handlers.
  void check_signals(Interrupted interrupted) {
    const int forks_before = fork_count;
    is_interrupted = interrupted();
    if (is_shared && fork_count != forks_before) throw ForkedDuringJob();
    if (is_interrupted) stop(nullptr);
  }

  // The caller is number 0, and it alone may ask whether it is interrupted.
  void help(int number, Interrupted interrupted) {
    auto last_check = Clock::now();
    int empty_queues = 0;
    while (empty_queues < queues && !stopped) {
      const int current = (number + empty_queues) % queues;
      const int64_t index = queue[current].next.fetch_add(1);
      if (index >= end_of(current)) {
        ++empty_queues;
        continue;
      }
      try {
        work(index);
      } catch (...) {
        stop(std::current_exception());
      }
      if (interrupted && Clock::now() - last_check > kInterruptPeriod) {
        check_signals(interrupted);
        last_check = Clock::now();
      }
    }
  }
};

// Workers that are awake take work and return it without the mutex, which is for those that sleep:
// waiting for a mutex would put them to sleep within microseconds. Each side first publishes its
// own state and then reads the other's.
class Pool {
 public:
  // Returns false when another caller has the workers, or all sleep and waking them is not worth
  // it: the caller then does its work alone, with the same result.
  bool help(Job& job, int helpers, bool wakes) {
    if (!wakes && sleepers_ == workers_) return false;
    Job* none = nullptr;
    if (!job_.compare_exchange_strong(none, &job)) return false;
    // Where the system starts no more threads, those that run do the work, with the same result.
    while (wakes && workers_ < helpers && start_worker()) {
    }
    helpers = std::min<int>(helpers, workers_);
    wanted_ = helpers;
    const int awake = workers_ - sleepers_;
    if (wakes && helpers > awake) {
      // A worker that found no work holds the mutex until it sleeps: waiting for the mutex ensures
      // that it does not miss the notification.
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
  bool start_worker() {
    try {
      std::thread(&Pool::serve, this, workers_ + 1).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++workers_;
    return true;
  }

  void serve(int number) {
    for (;;) {
      spin_until([this] { return wanted_ > 0; });
      if (wanted_ == 0) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleepers_;
        wake_.wait(lock, [this] { return wanted_ > 0; });
        --sleepers_;
      }
      // Counted before it takes work, so that no job ends while a worker begins it.
      ++busy_;
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
  std::condition_variable wake_;
  std::condition_variable done_;
  std::atomic<Job*> job_{nullptr};  // of the caller that has the workers
  std::atomic<int> wanted_{0};
  std::atomic<int> busy_{0};
  std::atomic<int> workers_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> waits_{false};
};

// Never destroyed: workers may sleep in it while the process ends.
Pool* const pool = new Pool;

// Workers are not forked, so the pool of a forked process begins again. Registered when the library
// is loaded: a thread may fork while another makes its first call.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  new (pool) Pool;
  ++fork_count;
});

std::atomic<Clock::rep> last_end{0};  // of a call on several threads

Clock::rep now() { return Clock::now().time_since_epoch().count(); }

TeamResult run_on_team(Job& job, int threads, Interrupted interrupted) {
  if (fork_count > 0) return TeamResult::absent;
  return run_on_torch_threads(threads, [&](int number) {
    if (number == 0) job.is_shared = true;
    job.help(number, number == 0 ? interrupted : nullptr);
  });
}

void run_on_pool(Job& job, int helpers, bool wakes, Interrupted interrupted) {
  job.is_shared = pool->help(job, helpers, wakes);
  job.help(0, interrupted);
  if (job.is_shared) pool->finish();
}

void run_job(Job& job, int threads, bool wakes, Interrupted interrupted) {
  if (threads == 1 || job.count <= 1) {
    job.help(0, interrupted);
    return;
  }
  // Calls that follow each other closely find the workers awake from the second on.
  wakes = wakes || now() - last_end < Clock::duration(kSpin).count();
  const TeamResult team = wakes ? run_on_team(job, threads, interrupted) : TeamResult::absent;
  if (team == TeamResult::absent) {
    const int64_t helpers = std::min<int64_t>(job.count, threads) - 1;
    run_on_pool(job, static_cast<int>(helpers), wakes, interrupted);
  } else if (team == TeamResult::busy) {
    job.help(0, interrupted);
  }
  last_end = now();
}

}  // namespace

bool parallel_for(int64_t count, int threads, bool wakes, const std::function<void(int64_t)>& work,
                  Interrupted interrupted) {
  Job job(count, threads, work);
  try {
    run_job(job, threads, wakes, interrupted);
  } catch (const ForkedDuringJob&) {
    if (job.is_interrupted) return false;
    throw std::runtime_error(
        "a signal handler forked the process during a call of keywise, which cannot end in the "
        "child: end the child in the handler, or call keywise again");
  }
  if (job.error) std::rethrow_exception(job.error);
  return !job.stopped;
}

}  // namespace keywise
