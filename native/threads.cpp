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

namespace keywise {
namespace {

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
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (!condition() && std::chrono::steady_clock::now() < end)
    for (int i = 0; i < 16 && !condition(); ++i) relax();
}

// One parallel_for: a counter that hands out work, and what went wrong.
struct Job {
  Job(int64_t count, const std::function<void(int64_t)>& work) : count(count), work(work) {}

  const int64_t count;
  const std::function<void(int64_t)>& work;
  std::atomic<int64_t> next{0};
  std::atomic<bool> stopped{false};
  std::mutex mutex;
  std::exception_ptr error;

  void stop(std::exception_ptr reason) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!error) error = reason;
    stopped = true;
  }

  void help(Interrupted interrupted) {
    auto asked = std::chrono::steady_clock::now();
    while (!stopped) {
      const int64_t index = next.fetch_add(1);
      if (index >= count) return;
      try {
        work(index);
      } catch (...) {
        stop(std::current_exception());
      }
      if (interrupted && std::chrono::steady_clock::now() - asked > kInterruptPeriod) {
        asked = std::chrono::steady_clock::now();
        if (interrupted()) stop(nullptr);
      }
    }
  }
};

class Pool {
 public:
  // False when another caller has the workers: the caller then does its work alone, with the same result.
  bool help(Job& job, int helpers) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (job_) return false;
    try {
      for (; workers_ < helpers; ++workers_) std::thread(&Pool::serve, this).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads: those there are do the work, with the same result.
    }
    job_ = &job;
    wanted_ = std::min(helpers, workers_);
    const int sleepers = sleepers_;
    lock.unlock();
    for (int i = 0; i < std::min(helpers, sleepers); ++i) wake_.notify_one();
    return true;
  }

  // Takes the job back and waits for the workers that are still in it.
  void finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;
    lock.unlock();
    spin_until([this] { return busy_ == 0; });
    lock.lock();
    done_.wait(lock, [this] { return busy_ == 0; });
    job_ = nullptr;
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      lock.unlock();
      spin_until([this] { return wanted_ > 0; });
      lock.lock();
      ++sleepers_;
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --sleepers_;
      --wanted_;
      ++busy_;
      Job* job = job_;
      lock.unlock();
      job->help(nullptr);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  // Changed under the mutex; read without it while spinning.
  std::atomic<int> wanted_{0}, busy_{0};
  int workers_ = 0, sleepers_ = 0;
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

}  // namespace

bool parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& work, Interrupted interrupted) {
  Job job(count, work);
  const int helpers = static_cast<int>(count < threads ? count : threads) - 1;
  const bool helped = helpers > 0 && the_pool().help(job, helpers);
  job.help(interrupted);
  if (helped) the_pool().finish();
  if (job.error) std::rethrow_exception(job.error);
  return !job.stopped;
}

}  // namespace keywise
