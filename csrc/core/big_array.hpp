// Memory for matrices of many megabytes: not cleared, and in large pages where the system has them.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/views.hpp"

namespace pyfast {

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

template <class T>
using BigArray = std::unique_ptr<T[], FreeMemory>;

// Throws std::bad_alloc. Clearing and mapping 100 MB in small pages takes longer than a search pass
// over it does.
template <class T>
BigArray<T> big_array(index count) {
  constexpr std::size_t kPage = std::size_t{1} << 21;
  const auto wanted = static_cast<std::size_t>(count);
  if (count < 0 || wanted > (std::size_t{1} << 62) / sizeof(T)) throw std::bad_alloc();
  const std::size_t bytes = (wanted * sizeof(T) + kPage - 1) / kPage * kPage;
  void* memory = std::aligned_alloc(kPage, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);  // advice: nothing depends on it
#endif
  return BigArray<T>(static_cast<T*>(memory));
}

}  // namespace pyfast
