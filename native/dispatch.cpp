// What this CPU and operating system can run, the table of targets, and the order of choice.

#include <cstdint>
#include <iterator>

#include "core.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace keywise {

namespace portable {
extern const Target target;
}

#if defined(__x86_64__)
namespace avx2 {
extern const Target target;
}
namespace avx512 {
extern const Target target;
}
namespace avx512_bf16 {
extern const Target target;
}

namespace {

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r;
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
  return r;
}

// Which register states the operating system saves (XCR0); 0 when it says nothing.
uint64_t saved_states() {
  if (!(cpuid(1, 0).c & bit_OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

constexpr uint64_t kSavesYmm = 0x6, kSavesZmm = 0xe6;

const char* lacks_avx2() {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
  if (!(seven.b & bit_AVX2)) return "the CPU has no AVX2";
  if (!(one.c & bit_FMA)) return "the CPU has no FMA";
  if (!(one.c & bit_F16C)) return "the CPU has no F16C";
  if ((saved_states() & kSavesYmm) != kSavesYmm) return "the operating system does not save the AVX registers";
  return "";
}

const char* lacks_avx512() {
  if (*lacks_avx2()) return lacks_avx2();
  const uint32_t wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  if ((cpuid(7, 0).b & wanted) != wanted) return "the CPU has no AVX-512 F, BW, DQ and VL";
  if ((saved_states() & kSavesZmm) != kSavesZmm) return "the operating system does not save the AVX-512 registers";
  return "";
}

const char* lacks_avx512_bf16() {
  if (*lacks_avx512()) return lacks_avx512();
  if (!(cpuid(7, 0).c & bit_AVX512VBMI)) return "the CPU has no AVX512_VBMI";
  return cpuid(7, 1).a & bit_AVX512BF16 ? "" : "the CPU has no AVX512_BF16";
}

// Measured by `keywise bench attention`: a Xeon (family 6, model 207) does half as many operations on pairs as in
// float32, AMD's family 25 twice as many. What other CPUs of Intel do was not measured.
bool dots_pairs_slowly() { return cpuid(0, 0).b == signature_INTEL_ebx; }

}  // namespace
#endif

int candidates(const Candidate** list) {
#if defined(__x86_64__)
  static const Candidate pairs{&avx512_bf16::target, lacks_avx512_bf16()}, single{&avx512::target, lacks_avx512()};
  static const bool pairs_first = !dots_pairs_slowly();
#endif
  static const Candidate table[] = {
#if defined(__x86_64__)
      pairs_first ? pairs : single,
      pairs_first ? single : pairs,
      {&avx2::target, lacks_avx2()},
#endif
      {&portable::target, ""},
  };
  *list = table;
  return int(std::size(table));
}

}  // namespace keywise
