// Workspace for copies of rows, on the boundaries of cache lines: elsewhere every other load of a
// register meets two lines, which slows the kernels of many pairs down. A copy for this alone costs
// a small group as much as it gains.
#pragma once

#include <vector>

#include "core/parallel.hpp"
#include "core/views.hpp"

namespace pyfast {

// The workspace grows and stays.
template <class T>
class AlignedRows {
 public:
  static constexpr index kLine = 64 / static_cast<index>(sizeof(T));  // numbers

  // The width is a multiple of kLine.
  void resize(index rows, index width, Token& token) {
    width_ = width;
    pyfast::resize(lines_, rows * width / kLine, token);
  }
  T* row(index i) { return reinterpret_cast<T*>(lines_.data()) + i * width_; }

 private:
  struct alignas(64) Line {
    T numbers[kLine];
  };
  index width_ = 0;
  std::vector<Line> lines_;
};

}  // namespace pyfast
