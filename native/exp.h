// The exponential and the hyperbolic tangent of vectors.
//
// exp2_nonpositive: x is split into n + f with an integer n and |f| <= 1/2. 2^f is a polynomial of
// degree 6 (minimax fit of the relative error with the constant fixed to 1, 2.0e-9), and 2^n goes
// into the exponent. The largest relative error in float32 over [-126, 0] is 8e-8 where mul_add
// rounds once, 1.1e-7 where it rounds twice (portable). Below -127 the result is 0, or less than
// 2^-126 where subnormal numbers are not flushed. -inf gives 0, the weight of a hidden key; NaN
// stays NaN.
#pragma once

#include "simd.h"

namespace keywise::KEYWISE_TARGET {

// Computes 2^x of V vectors, each step for all of them: a step waits for the step before it, and
// vector by vector the CPU would have to look further ahead than it can. Where the power is 0, x
// becomes kLog2OfZero, because 0 x (-inf) would be NaN.
template <int V>
static inline void exp2_nonpositive(Vec* x, Vec* powers) {
  constexpr float kCoefficients[] = {0.0013398873852565885f, 0.00961843691766262f,
                                     0.055503323674201965f,  0.24022647738456726f,
                                     0.6931471824645996f,    1.0f};
  Vec exponent[V];
  Vec fraction[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) fraction[v] = max(broadcast(kLog2OfZero), x[v]);
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) exponent[v] = round_nearest(fraction[v]);
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) fraction[v] = sub(fraction[v], exponent[v]);
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) powers[v] = broadcast(0.00015353361959569156f);
#pragma GCC unroll 16
  for (float coefficient : kCoefficients)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) powers[v] = mul_add(powers[v], fraction[v], broadcast(coefficient));
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) powers[v] = ldexp(powers[v], exponent[v]);
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) x[v] = add(exponent[v], fraction[v]);  // exactly
}

static inline Vec exp2_nonpositive(Vec x) {
  Vec power;
  exp2_nonpositive<1>(&x, &power);
  return power;
}

// Computes tanh x: x + x^3 q(x^2) below 0.625 (minimax fit, relative error 4.4e-9), else
// 1 - 2 e / (1 + e) with e = exp(-2|x|).
static inline Vec compute_tanh(Vec x) {
  const Vec size = abs(x);
  const Vec square = mul(x, x);
  Vec q = broadcast(-0.005704986862838268f);
  q = mul_add(q, square, broadcast(0.0206390880048275f));
  q = mul_add(q, square, broadcast(-0.05373971536755562f));
  q = mul_add(q, square, broadcast(0.13331441581249237f));
  q = mul_add(q, square, broadcast(-0.3333328068256378f));
  const Vec small = mul_add(mul(q, square), x, x);
  constexpr float kMinusTwoLog2E = -2.8853900817779268f;
  const Vec e = exp2_nonpositive(mul(size, broadcast(kMinusTwoLog2E)));
  const Vec large = sub(broadcast(1.0f), div(add(e, e), add(broadcast(1.0f), e)));
  return if_less(size, broadcast(0.625f), small, copy_sign(large, x));
}

}  // namespace keywise::KEYWISE_TARGET
