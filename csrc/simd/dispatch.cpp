#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(PYFAST_SIMD_X86)
#include "simd/cpu.hpp"
#endif
#include "simd/simd.hpp"

namespace pyfast::simd {

extern const Kernels kernels_baseline;
#if defined(PYFAST_SIMD_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

struct Level {
  const Kernels* kernels;
  bool usable;
};

// From the slowest to the fastest.
const std::vector<Level>& levels() {
#if defined(PYFAST_SIMD_X86)
  static const Cpu cpu = detect_cpu();
  static const std::vector<Level> all{
      {&kernels_baseline, true}, {&kernels_avx2, cpu.avx2}, {&kernels_avx512, cpu.avx512}};
#else
  static const std::vector<Level> all{{&kernels_baseline, true}};
#endif
  return all;
}

const Kernels& choose() {
  const char* forced = std::getenv("PYFAST_SIMD");
  if (forced != nullptr && *forced != '\0') {
    if (const Kernels* found = find_level(forced)) return *found;
  }
  const Kernels* fastest = nullptr;
  std::string names;
  for (const Level& level : levels()) {
    if (!level.usable) continue;
    fastest = level.kernels;
    names += (names.empty() ? "" : ", ") + std::string(fastest->level);
  }
  if (forced != nullptr && *forced != '\0') {
    throw std::invalid_argument("PYFAST_SIMD: expected a level of this machine (" + names +
                                "), got " + forced);
  }
  return *fastest;
}

}  // namespace

const Kernels* find_level(const char* name) {
  for (const Level& level : levels()) {
    if (level.usable && std::strcmp(name, level.kernels->level) == 0) return level.kernels;
  }
  return nullptr;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();  // tried again if it throws
  return chosen;
}

}  // namespace pyfast::simd
