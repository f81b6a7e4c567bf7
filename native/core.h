// The C++ interface: choose a target, run a problem or a product with a matrix in blocks.
#pragma once

#include "backward.h"
#include "problem.h"
#include "quantised.h"
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

// Computes the gradients of a problem; they do not depend on the number of threads. Returns false
// when it was interrupted.
bool run_backward(const BackwardProblem& problem, const Target& target, int threads,
                  Interrupted interrupted);

// Multiplies `count` contiguous rows of `dtype` by the transpose of a matrix. Inputs are rounded to
// 16 bits with a scale per 16 or 32 of them; sums are float32. Returns false when it was
// interrupted.
bool multiply_quantised(const QuantisedMatrix& matrix, const void* inputs, int64_t count,
                        Dtype dtype, void* output, const Target& target, int threads,
                        Interrupted interrupted);

// Writes all weights of a matrix, contiguous. Returns false when it was interrupted.
bool dequantise(const QuantisedMatrix& matrix, void* output, Dtype dtype, const Target& target,
                int threads, Interrupted interrupted);

}  // namespace keywise
