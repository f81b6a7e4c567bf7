// Tests of run() through the C++ interface, on every target of this CPU and for sanitizers: random
// cases; calls from several threads, from signal handlers and in forked processes. The expected
// result is that of one thread; Python's tests compare results with the definition.

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../core.h"
#include "random_case.h"

namespace keywise {
namespace {

// Returns a case without options whose keys are split among threads.
std::unique_ptr<Case> make_split_case(int64_t queries, int64_t keys) {
  Random random(0);
  auto made = std::make_unique<Case>(random, 1, 4, 1, queries, keys, 32, 32, Dtype::float32,
                                     Dtype::float32);
  made->want_statistics(random);
  return made;
}

void test_bits_are_equal_on_any_number_of_threads(const Target& target, unsigned cases) {
  for (unsigned seed = 0; seed < cases; ++seed) {
    const std::unique_ptr<Case> made = make_random_case(seed);
    const std::string expected = made->compute(target, 1);
    for (const int threads : {2, 3, 7})
      CHECK(
          made->compute(target, threads) == expected,
          (std::string(target.name) + ", seed " + std::to_string(seed) + ", " + made->describe()));
  }
}

void test_simultaneous_callers_have_the_same_bits() {
  constexpr int kCallers = 4;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller)
    callers.emplace_back([caller] {
      const std::unique_ptr<Case> made = make_split_case(3 + caller, 1500);
      const std::string expected = made->compute(fastest_target(), 1);
      for (int i = 0; i < 10; ++i)
        CHECK(made->compute(fastest_target(), 2 + i % 2) == expected, made->describe());
    });
  for (std::thread& caller : callers) caller.join();
}

// ---- Signal handlers ----

// A handler cannot have arguments.
const Case* inner_case = nullptr;
std::string inner_expected;
int handler_calls = 0;
int handler_depth = 0;

bool call_again() {
  ++handler_calls;
  if (handler_depth > 0) return false;
  ++handler_depth;
  CHECK(inner_case->compute(fastest_target(), 3, call_again) == inner_expected,
        inner_case->describe());
  --handler_depth;
  return false;
}

void test_calls_from_signal_handlers_have_the_same_bits() {
  const std::unique_ptr<Case> inner = make_split_case(2, 3000);
  const std::unique_ptr<Case> outer = make_split_case(60, 20000);
  inner_case = inner.get();
  inner_expected = inner->compute(fastest_target(), 1);
  const std::string expected = outer->compute(fastest_target(), 1);
  for (int i = 0; i < 200 && handler_calls < 5; ++i)
    CHECK(outer->compute(fastest_target(), 1 + i % 3, call_again) == expected, outer->describe());
  CHECK(handler_calls >= 5, std::to_string(handler_calls));
}

void test_an_interruption_ends_a_call() {
  const std::unique_ptr<Case> made = make_split_case(60, 20000);
  for (const int threads : {1, 3}) {
    bool stopped = false;
    for (int i = 0; i < 50 && !stopped; ++i)
      stopped = made->compute(fastest_target(), threads, [] { return true; }).empty();
    CHECK(stopped, made->describe());
  }
}

// ---- Forks: ThreadSanitizer refuses threads in a forked process ----

#if !defined(__SANITIZE_THREAD__)

// Returns the exit status of a forked process, -1 for one that does not end.
template <typename Work>
int fork_and_wait(const Work& work) {
  const pid_t child = fork();
  if (child == 0) _exit(work());
  for (int waited = 0; waited < 6000; ++waited) {
    int status;
    if (waitpid(child, &status, WNOHANG) == child)
      return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return -1;
}

void test_forked_processes_compute() {
  const std::unique_ptr<Case> made = make_split_case(5, 3000);
  const std::string expected = made->compute(fastest_target(), 3);
  const auto compute = [&] { return made->compute(fastest_target(), 3) == expected ? 0 : 1; };
  std::atomic<bool> done{false};
  std::thread other([&] {
    const std::unique_ptr<Case> busy = make_split_case(4, 3000);
    while (!done) busy->compute(fastest_target(), 2);
  });
  for (int i = 0; i < 10; ++i) CHECK(fork_and_wait(compute) == 0, made->describe());
  CHECK(fork_and_wait([&] { return compute() + fork_and_wait(compute); }) == 0, made->describe());
  done = true;
  other.join();
}

pid_t handler_child = -1;

bool fork_once() {
  if (handler_child < 0) handler_child = fork();
  return false;
}

void test_a_call_says_that_its_handler_forked() {
  const std::unique_ptr<Case> made = make_split_case(60, 20000);
  const std::string expected = made->compute(fastest_target(), 1);
  bool refused = false;
  std::string bytes;
  try {
    for (int i = 0; i < 50 && handler_child < 0; ++i)
      bytes = made->compute(fastest_target(), 3, fork_once);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  if (handler_child == 0) {
    // Alone, a thread computes all the same.
    _exit((refused || bytes == expected) && made->compute(fastest_target(), 3) == expected ? 0 : 1);
  }
  CHECK(handler_child > 0 && !refused && bytes == expected, made->describe());
  int status = -1;
  waitpid(handler_child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, std::to_string(status));
}

#endif

}  // namespace
}  // namespace keywise

// The argument is the number of random cases per target.
int main(int argc, char** argv) {
  using namespace keywise;
  const unsigned cases = argc > 1 ? unsigned(std::stoul(argv[1])) : 40;
  const Candidate* list;
  for (int i = 0, count = candidates(&list); i < count; ++i) {
    std::printf("%s: %s\n", list[i].target->name, *list[i].reason ? list[i].reason : "tested");
    if (!*list[i].reason) test_bits_are_equal_on_any_number_of_threads(*list[i].target, cases);
  }
  test_simultaneous_callers_have_the_same_bits();
  test_calls_from_signal_handlers_have_the_same_bits();
  test_an_interruption_ends_a_call();
#if !defined(__SANITIZE_THREAD__)
  test_forked_processes_compute();
  test_a_call_says_that_its_handler_forked();
#endif
  std::printf(failures == 0 ? "all tests passed\n" : "some tests failed\n");
  return failures == 0 ? 0 : 1;
}
