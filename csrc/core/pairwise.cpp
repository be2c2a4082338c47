#include "core/pairwise.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/distances.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

// Rows of a tile: few enough to be done, and an interrupt be seen, within milliseconds.
index tile_of(index d) { return d <= 16384 ? 128 : 32; }

void squares(MatrixView<float> x, MatrixView<float> y, float* out, index stride) {
  simd::kernels().squared_distance_f32(x.data, x.rows, x.cols, y.data, y.rows, y.cols, x.cols, out,
                                       stride);
}
void squares(MatrixView<double> x, MatrixView<double> y, double* out, index stride) {
  simd::kernels().squared_distance_f64(x.data, x.rows, x.cols, y.data, y.rows, y.cols, x.cols, out,
                                       stride);
}

template <class T>
MatrixView<T> rows_of(MatrixView<T> x, index first, index count) {
  return {x.row(first), std::min(count, x.rows - first), x.cols};
}

// The squares of very large, very small or equal float rows leave the comfortable range of float.
void take_roots(MatrixView<float> x, MatrixView<float> y, float* tile, index stride) {
  for (index i = 0; i < x.rows; ++i) {
    float* row = tile + i * stride;
    int bad = 0;
    for (index j = 0; j < y.rows; ++j) {
      bad |= static_cast<int>(!(row[j] > 1e-28f)) | static_cast<int>(!(row[j] < 1e37f));
    }
    if (bad == 0) {
      for (index j = 0; j < y.rows; ++j) row[j] = std::sqrt(row[j]);
      continue;
    }
    for (index j = 0; j < y.rows; ++j) {
      const bool comfortable = row[j] > 1e-28f && row[j] < 1e37f;
      row[j] = comfortable ? std::sqrt(row[j])
                           : static_cast<float>(exact_distance(x.row(i), y.row(j), x.cols));
    }
  }
}
void take_roots(MatrixView<double> x, MatrixView<double> y, double* tile, index stride) {
  for (index i = 0; i < x.rows; ++i) {
    for (index j = 0; j < y.rows; ++j) tile[i * stride + j] = std::sqrt(tile[i * stride + j]);
  }
}

}  // namespace

template <class T>
void distances_between(MatrixView<T> x, MatrixView<T> y, T* out, index stride, Token& token) {
  const index side = tile_of(x.cols);
  for (index i = 0; i < x.rows; i += side) {
    for (index j = 0; j < y.rows; j += side) {
      const MatrixView<T> a = rows_of(x, i, side), b = rows_of(y, j, side);
      token.spend(a.rows * b.rows * x.cols);
      T* tile = out + i * stride + j;
      squares(a, b, tile, stride);
      take_roots(a, b, tile, stride);
    }
  }
}

template <class T>
void euclidean_distances(MatrixView<T> x, T* out, int threads, Cancel& cancel, Token& caller,
                         const index* names) {
  const index n = x.rows, side = tile_of(x.cols), strips = (n + side - 1) / side;
  threads = worthwhile_threads(threads, 0.5 * static_cast<double>(n * n * x.cols));
  // The strip of the most tiles goes first, so that the threads end together.
  const auto fill_strip = [&](index item, int, Token& token) {
    const index top = (strips - 1 - item) * side;
    const MatrixView<T> a = rows_of(x, top, side);
    std::vector<T> tile(static_cast<std::size_t>(side * side));
    for (index left = 0; left <= top; left += side) {
      const MatrixView<T> b = rows_of(x, left, side);
      token.spend(a.rows * b.rows * x.cols);
      squares(a, b, tile.data(), side);
      take_roots(a, b, tile.data(), side);
      for (index i = 0; i < a.rows; ++i) {
        const T* row = tile.data() + i * side;
        int infinite = 0;
        for (index j = 0; j < b.rows; ++j) infinite |= static_cast<int>(!(row[j] - row[j] == 0));
        for (index j = 0; infinite != 0 && j < b.rows; ++j) {
          if (std::isfinite(row[j])) continue;
          if (names != nullptr) throw_overflow(names[top + i], names[left + j]);
          throw_overflow(top + i, left + j);
        }
        std::copy(row, row + b.rows, out + (top + i) * n + left);
      }
      if (left == top) continue;  // a tile on the diagonal is its own mirror image
      for (index j = 0; j < b.rows; ++j) {
        T* to = out + (left + j) * n + top;
        for (index i = 0; i < a.rows; ++i) to[i] = tile[static_cast<std::size_t>(i * side + j)];
      }
    }
  };
  if (threads > 1) {
    parallel_for(strips, threads, cancel, fill_strip);
  } else {
    for (index item = 0; item < strips; ++item) fill_strip(item, 0, caller);
  }
}

#define PYFAST_INSTANTIATE(T)                                                       \
  template void distances_between(MatrixView<T>, MatrixView<T>, T*, index, Token&); \
  template void euclidean_distances(MatrixView<T>, T*, int, Cancel&, Token&, const index*);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
