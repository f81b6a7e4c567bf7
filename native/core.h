// The C++ interface: choose a target, run a problem.
#pragma once

#include "problem.h"
#include "target.h"

namespace keywise {

// dispatch.cpp: every target compiled in, best first, and why it cannot run here (empty: it can).
struct Candidate {
  const Target* target;
  const char* reason;
};
int candidates(const Candidate** list);

// Called now and then on the calling thread; true stops the call.
using Interrupted = bool (*)();

// Solves a problem; the result does not depend on the number of threads. Returns false when it was
// interrupted.
bool run(const Problem& problem, const Target& target, int threads, Interrupted interrupted);

}  // namespace keywise
