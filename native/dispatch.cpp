// What this CPU and operating system can run: the table of targets in the order of choice.

#include <cstdint>
#include <cstdlib>
#include <cstring>
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
#endif

namespace {

// Bits of what a target may require.
enum Feature : uint32_t {
  kAvx2 = 1 << 0,
  kFma = 1 << 1,
  kF16c = 1 << 2,
  kSavesYmm = 1 << 3,
  kAvx512 = 1 << 4,
  kSavesZmm = 1 << 5,
  kVbmi = 1 << 6,
  kBf16 = 1 << 7,
};

struct FeatureReason {
  Feature feature;
  const char* reason;
};

// Why a target that requires a feature cannot run; the first that applies is named.
constexpr FeatureReason kReasons[] = {
    {kAvx2, "the CPU has no AVX2"},
    {kFma, "the CPU has no FMA"},
    {kF16c, "the CPU has no F16C"},
    {kSavesYmm, "the operating system does not save the AVX registers"},
    {kAvx512, "the CPU has no AVX-512 F, BW, DQ and VL"},
    {kSavesZmm, "the operating system does not save the AVX-512 registers"},
    {kVbmi, "the CPU has no AVX512_VBMI"},
    {kBf16, "the CPU has no AVX512_BF16"},
};

struct CpuFeatures {
  uint32_t features = 0;  // bits of Feature
  bool is_intel = false;
};

struct TargetRow {
  const Target* target;
  uint32_t required;  // bits of Feature
};

#if defined(__x86_64__)

constexpr uint32_t kAvx2Features = kAvx2 | kFma | kF16c | kSavesYmm;
constexpr uint32_t kAvx512Features = kAvx2Features | kAvx512 | kSavesZmm;
constexpr uint32_t kAvx512Bf16Features = kAvx512Features | kVbmi | kBf16;

struct Registers {
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
};

Registers read_cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers registers;
  __get_cpuid_count(leaf, subleaf, &registers.eax, &registers.ebx, &registers.ecx, &registers.edx);
  return registers;
}

bool has_bits(uint64_t value, uint64_t bits) { return (value & bits) == bits; }

// Returns which register states the operating system saves (XCR0); 0 where it does not say.
uint64_t read_saved_states() {
  if (!has_bits(read_cpuid(1, 0).ecx, bit_OSXSAVE)) return 0;
  uint32_t low;
  uint32_t high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

CpuFeatures read_cpu_features() {
  // Bits of XCR0: SSE and AVX; AVX-512 adds its mask registers and both parts of its vectors.
  constexpr uint64_t kYmmStates = 0x6;
  constexpr uint64_t kZmmStates = 0xe6;
  const Registers leaf1 = read_cpuid(1, 0);
  const Registers leaf7 = read_cpuid(7, 0);
  const Registers leaf7_1 = read_cpuid(7, 1);
  const uint64_t saved_states = read_saved_states();
  CpuFeatures cpu;
  cpu.is_intel = read_cpuid(0, 0).ebx == signature_INTEL_ebx;
  if (has_bits(leaf7.ebx, bit_AVX2)) cpu.features |= kAvx2;
  if (has_bits(leaf1.ecx, bit_FMA)) cpu.features |= kFma;
  if (has_bits(leaf1.ecx, bit_F16C)) cpu.features |= kF16c;
  if (has_bits(saved_states, kYmmStates)) cpu.features |= kSavesYmm;
  if (has_bits(leaf7.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL))
    cpu.features |= kAvx512;
  if (has_bits(saved_states, kZmmStates)) cpu.features |= kSavesZmm;
  if (has_bits(leaf7.ecx, bit_AVX512VBMI)) cpu.features |= kVbmi;
  if (has_bits(leaf7_1.eax, bit_AVX512BF16)) cpu.features |= kBf16;
  return cpu;
}

constexpr TargetRow kAvx512Row = {&avx512::target, kAvx512Features};
constexpr TargetRow kAvx512Bf16Row = {&avx512_bf16::target, kAvx512Bf16Features};

// Measured by `python -m benchmarks attention`: a Xeon (family 6, model 207) does half as many
// operations on pairs of bfloat16 as in float32, AMD's family 25 twice as many. Other CPUs of Intel
// were not measured.
constexpr TargetRow kRows[] = {
    kAvx512Bf16Row, kAvx512Row, {&avx2::target, kAvx2Features}, {&portable::target, 0}};
constexpr TargetRow kIntelRows[] = {
    kAvx512Row, kAvx512Bf16Row, {&avx2::target, kAvx2Features}, {&portable::target, 0}};

#else

CpuFeatures read_cpu_features() { return {}; }
constexpr TargetRow kRows[] = {{&portable::target, 0}};
constexpr TargetRow kIntelRows[] = {{&portable::target, 0}};

#endif

static_assert(std::size(kRows) == std::size(kIntelRows));

// Returns whether a comma-separated list holds a name.
bool contains_name(const char* list, const char* name) {
  const size_t name_length = std::strlen(name);
  while (*list) {
    const size_t length = std::strcspn(list, ",");
    if (length == name_length && std::memcmp(list, name, length) == 0) return true;
    list += length;
    if (*list == ',') ++list;
  }
  return false;
}

// Returns why a target cannot run here, or an empty string.
const char* find_reason(const TargetRow& row, const CpuFeatures& cpu) {
  for (const FeatureReason& entry : kReasons)
    if (row.required & ~cpu.features & entry.feature) return entry.reason;
  // For support: whether a wrong result or a crash depends on a target.
  const char* const disabled = std::getenv("KEYWISE_DISABLE_TARGETS");
  if (disabled && contains_name(disabled, row.target->name))
    return "KEYWISE_DISABLE_TARGETS disables it";
  return "";
}

struct CandidateTable {
  Candidate candidates[std::size(kRows)];
};

CandidateTable make_table() {
  const CpuFeatures cpu = read_cpu_features();
  const TargetRow* rows = cpu.is_intel ? kIntelRows : kRows;
  CandidateTable table;
  for (size_t i = 0; i < std::size(kRows); ++i)
    table.candidates[i] = {rows[i].target, find_reason(rows[i], cpu)};
  return table;
}

}  // namespace

int candidates(const Candidate** list) {
  static const CandidateTable table = make_table();
  *list = table.candidates;
  return int(std::size(table.candidates));
}

}  // namespace keywise
