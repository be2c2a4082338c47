#pragma once

// What the processor has, asked from itself: the compilers' __builtin_cpu_supports is not there in
// MSVC and says no to everything in zig's runtime.

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

#include <cstdint>

namespace pyfast::simd {

struct Cpu {
  bool avx2 = false;    // with FMA
  bool avx512 = false;  // F, DQ, BW and VL
};

namespace detail {

struct Registers {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

inline Registers cpuid(std::uint32_t leaf) {
  Registers r;
#if defined(_MSC_VER) && !defined(__clang__)
  int most[4], found[4];
  __cpuid(most, 0);
  if (static_cast<std::uint32_t>(most[0]) < leaf) return r;
  __cpuidex(found, static_cast<int>(leaf), 0);
  r = {std::uint32_t(found[0]), std::uint32_t(found[1]), std::uint32_t(found[2]),
       std::uint32_t(found[3])};
#else
  __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);  // all 0 if there is no such leaf
#endif
  return r;
}

// Which registers the operating system saves.
inline std::uint64_t saved_registers() {
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
#endif
}

inline bool bit(std::uint32_t word, int place) { return ((word >> place) & 1U) != 0; }

}  // namespace detail

inline Cpu detect_cpu() {
  const detail::Registers basic = detail::cpuid(1);
  const bool fma = detail::bit(basic.ecx, 12), xsave = detail::bit(basic.ecx, 27),
             avx = detail::bit(basic.ecx, 28);
  if (!xsave || !avx) return {};
  const std::uint64_t saved = detail::saved_registers();
  const std::uint32_t more = detail::cpuid(7).ebx;
  const bool wide = (saved & 0x06U) == 0x06U;   // xmm, ymm
  const bool wider = (saved & 0xE6U) == 0xE6U;  // and the masks, zmm, zmm16 to zmm31
  Cpu cpu;
  cpu.avx2 = wide && fma && detail::bit(more, 5);
  cpu.avx512 = wider && detail::bit(more, 16) && detail::bit(more, 17) && detail::bit(more, 30) &&
               detail::bit(more, 31);
  return cpu;
}

}  // namespace pyfast::simd
