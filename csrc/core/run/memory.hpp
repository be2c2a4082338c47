// Memory: of many megabytes, on the boundaries of cache lines, and copies of rows. New memory may
// come at a second a gigabyte, so an interrupt can end what fills it.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/run/views.hpp"
#include "core/run/work.hpp"

namespace pyfast {

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

template <class T>
using BigArray = std::unique_ptr<T[], FreeMemory>;

// Memory that is not cleared; much of it in large pages, where the system has them. Throws
// std::bad_alloc.
// Clearing and mapping 100 MB in small pages takes longer than a search pass over it does.
template <class T>
BigArray<T> big_array(index count) {
  constexpr std::size_t kPage = std::size_t{1} << 21;
  const auto wanted = static_cast<std::size_t>(count);
  if (count < 0 || wanted > (std::size_t{1} << 62) / sizeof(T)) throw std::bad_alloc();
  const bool much = wanted * sizeof(T) > 2 * kPage;
  const std::size_t unit = much ? kPage : 64;
  const std::size_t bytes = std::max<std::size_t>((wanted * sizeof(T) + unit - 1) / unit, 1) * unit;
  void* memory = std::aligned_alloc(unit, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (much) madvise(memory, bytes, MADV_HUGEPAGE);  // advice: nothing depends on it
#endif
  return BigArray<T>(static_cast<T*>(memory));
}

// vector.resize(), old values not kept, that can be interrupted: the system takes up to a second to
// hand out and clear a gigabyte.
template <class T>
void resize(std::vector<T>& vector, index count, Work& work) {
  constexpr std::size_t kStep = (std::size_t{1} << 23) / sizeof(T) + 1;
  const auto wanted = static_cast<std::size_t>(count);
  if (wanted > vector.capacity()) {
    vector.clear();
    vector.reserve(wanted);
  }
  while (vector.size() + kStep < wanted) {
    vector.resize(vector.size() + kStep);
    work.spend(4'000'000);
  }
  vector.resize(wanted);
}

// The same for memory that stays uncleared: takes it from the system in order. Who writes across
// many pages first waits for all of them in one step.
template <class T>
void touch(T* memory, index count, Work& work) {
  constexpr index kPage = 4096 / sizeof(T);
  for (index i = 0; i < count; i += kPage) {
    memory[i] = T{};
    work.spend(8192);
  }
}

// Workspace for copies of rows, on the boundaries of cache lines: elsewhere every other load of a
// register meets two lines, which slows the kernels of many pairs down. A copy for this alone costs
// a small group as much as it gains. The workspace grows and stays.
template <class T>
class AlignedRows {
 public:
  static constexpr index kLine = 64 / static_cast<index>(sizeof(T));  // numbers

  // The width is a multiple of kLine.
  void resize(index rows, index width, Work& work) {
    width_ = width;
    pyfast::resize(lines_, rows * width / kLine, work);
  }
  T* row(index i) { return reinterpret_cast<T*>(lines_.data()) + i * width_; }
  const T* row(index i) const { return reinterpret_cast<const T*>(lines_.data()) + i * width_; }

 private:
  struct alignas(64) Line {
    T numbers[kLine];
  };
  index width_ = 0;
  std::vector<Line> lines_;
};

// The rows named, one after another.
template <class T>
std::vector<T> gather(MatrixView<T> x, const std::vector<index>& rows, Work& work) {
  std::vector<T> out;
  resize(out, static_cast<index>(rows.size()) * x.cols, work);
  T* to = out.data();
  for (const index i : rows) {
    work.spend(x.cols);
    to = std::copy(x.row(i), x.row(i) + x.cols, to);
  }
  return out;
}

// All rows, as numbers of another type.
template <class To, class T>
std::vector<To> converted(MatrixView<T> x, Work& work) {
  std::vector<To> out;
  resize(out, x.rows * x.cols, work);
  To* to = out.data();
  for (index i = 0; i < x.rows; ++i) {
    work.spend(x.cols);
    to = std::copy(x.row(i), x.row(i) + x.cols, to);
  }
  return out;
}

template <class T>
std::vector<double> widen(MatrixView<T> x, Work& work) {
  return converted<double>(x, work);
}

}  // namespace pyfast
