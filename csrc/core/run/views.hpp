// Row-major views over memory that the caller owns. Nothing here allocates, copies or frees.
#pragma once

#include <cstdint>

namespace pyfast {

using index = std::int64_t;

template <class T>
struct MatrixView {
  const T* data = nullptr;
  index rows = 0;
  index cols = 0;

  const T* row(index i) const { return data + i * cols; }
};

// Ragged groups laid end to end: group b owns the points offsets[b] .. offsets[b + 1] - 1.
struct Groups {
  const index* offsets = nullptr;
  index count = 0;

  index begin(index b) const { return offsets[b]; }
  index size(index b) const { return offsets[b + 1] - offsets[b]; }
};

}  // namespace pyfast
