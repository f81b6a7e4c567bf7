// Python's lock and signals while kernels run.
#pragma once

#include <cxxabi.h>
#include <unistd.h>

#include <nanobind/nanobind.h>

namespace keywise::python {

// The thread that runs Python's signal handlers; others would wait for the GIL without effect.
// 0 until set_main_thread is called.
inline unsigned long main_thread = 0;
inline void set_main_thread(unsigned long thread) { main_thread = thread; }

// Releases the GIL for as long as it lives. A signal handler that runs in between may call keywise:
// such objects nest.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()), outer_(current()) { current() = this; }
  ~WithoutGil() {
    acquire();
    current() = outer_;
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

  // Runs Python's handlers of the signals that arrived; true when one raised an exception. Only on
  // a thread that has released the GIL, and only of use on the main thread: no other receives
  // signals.
  static bool handle_signals() {
    WithoutGil& gil = *current();
    gil.acquire();
    const bool raised = PyErr_CheckSignals() != 0;
    gil.state_ = PyEval_SaveThread();
    return raised;
  }

 private:
  // Until Python 3.14, taking the GIL while Python ends unwinds the thread by force, which no C++
  // frame of a module survives. Such a thread sleeps until the process is gone.
  void acquire() noexcept {
    try {
      PyEval_RestoreThread(state_);
    } catch (const abi::__forced_unwind&) {
      for (;;) pause();
    }
  }

  static WithoutGil*& current() {
    thread_local WithoutGil* gil = nullptr;
    return gil;
  }

  PyThreadState* state_;
  WithoutGil* const outer_;
};

// Calls run(interrupted) without the GIL. Raises what a signal handler raised; then run returned
// false.
template <typename Run>
void run_without_gil(Run run) {
  const bool receives_signals = PyThread_get_thread_ident() == main_thread;
  bool finished;
  {
    const WithoutGil released;
    finished = run(receives_signals ? WithoutGil::handle_signals : nullptr);
  }
  if (!finished) throw nb::python_error();
}

}  // namespace keywise::python
