#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

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
  // cpu_supports asks the operating system as well whether it saves the wide registers.
  static const bool avx512 =
      __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
      __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  static const bool avx2 =
      __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  static const std::vector<Level> all{
      {&kernels_baseline, true}, {&kernels_avx2, avx2}, {&kernels_avx512, avx512}};
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
