// The floating-point mode of a thread: how results round, and whether subnormal numbers count as 0.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#else
#include <cfenv>
#endif

namespace keywise {

// While an object lives, its thread rounds to nearest, keeps subnormal numbers and traps nothing,
// whatever the caller or another library has set; afterwards their mode is back.
class DefaultFloatMode {
 public:
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

#if defined(__x86_64__)
  DefaultFloatMode() { _mm_setcsr(kMaskedExceptions); }
  ~DefaultFloatMode() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kMaskedExceptions = 0x1f80;
  const unsigned before_ = _mm_getcsr();
#elif defined(__aarch64__)
  DefaultFloatMode() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t(0)) : "memory");
  }
  ~DefaultFloatMode() { __asm__ volatile("msr fpcr, %0" : : "r"(before_) : "memory"); }

 private:
  uint64_t before_;
#else
  DefaultFloatMode() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatMode() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
#endif
};

}  // namespace keywise
