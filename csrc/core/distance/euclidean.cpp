#include "core/distance/euclidean.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/distance/exact.hpp"
#include "core/distance/gemm_bounds.hpp"
#include "core/run/memory.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

// Rows of a tile: few enough to be done, and an interrupt be seen, within some 50 ms.
index tile_of(index d) {
  index side = 128;
  while (side > 4 && side * side * d > 1 << 28) side /= 2;
  return side;
}

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
bool comfortable(float square) { return square > 1e-28f && square < 1e37f; }

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
      row[j] = comfortable(row[j]) ? std::sqrt(row[j])
                                   : static_cast<float>(exact_distance(x.row(i), y.row(j), x.cols));
    }
  }
}
void take_roots(MatrixView<double> x, MatrixView<double> y, double* tile, index stride) {
  for (index i = 0; i < x.rows; ++i) {
    double* row = tile + i * stride;
    int bad = 0;
    for (index j = 0; j < y.rows; ++j) bad |= static_cast<int>(!comfortable_square(row[j]));
    if (bad == 0) {
      for (index j = 0; j < y.rows; ++j) row[j] = std::sqrt(row[j]);
      continue;
    }
    for (index j = 0; j < y.rows; ++j) row[j] = distance_of(row[j], x.row(i), y.row(j), x.cols);
  }
}

// out[i * stride + j] = ||x_i - y_j||_2; infinity if that overflows T.
template <class T>
void distances_between(MatrixView<T> x, MatrixView<T> y, T* out, index stride, Work& work) {
  const index side = tile_of(x.cols);
  for (index i = 0; i < x.rows; i += side) {
    for (index j = 0; j < y.rows; j += side) {
      const MatrixView<T> a = rows_of(x, i, side), b = rows_of(y, j, side);
      work.spend(a.rows * b.rows * x.cols);
      T* tile = out + i * stride + j;
      squares(a, b, tile, stride);
      take_roots(a, b, tile, stride);
    }
  }
}

// Throws if one of the distances of point i to points j .. j + count - 1 is infinite.
template <class T>
void check_overflow(const T* d, index i, index j, index count, const index* names) {
  int infinite = 0;
  for (index c = 0; c < count; ++c) infinite |= static_cast<int>(!(d[c] - d[c] == 0));
  for (index c = 0; infinite != 0 && c < count; ++c) {
    if (std::isfinite(d[c])) continue;
    if (names != nullptr) throw_overflow(names[i], names[j + c]);
    throw_overflow(i, j + c);
  }
}

// What is measured of a tile: the distances of the points a, from `left` on, to those of a strip.
// Whether some of it may be infinite.
template <class T>
class Measured {
 public:
  explicit Measured(MatrixView<T> strip) : strip_(strip) {}

  bool measure(index, MatrixView<T> a, T* tile, index side, Work& work) const {
    work.spend(a.rows * strip_.rows * a.cols);
    squares(a, strip_, tile, side);
    take_roots(a, strip_, tile, side);
    return true;
  }

 private:
  MatrixView<T> strip_;
};

// Or numbers just below them, and distances where too close to tell.
template <class T>
class Bounded {
 public:
  Bounded(MatrixView<T> strip, index top, const GemmBounds<T>& bounds, Work& work)
      : exactly_(strip), strip_(strip), bounds_(bounds, top, strip.rows, work) {}

  bool measure(index left, MatrixView<T> a, T* tile, index side, Work& work) {
    const index unknown = bounds_.measure(left, a.rows, tile, side, work);
    if (unknown < 0) return exactly_.measure(left, a, tile, side, work);
    for (index i = 0; unknown > 0 && i < a.rows; ++i) {
      T* row = tile + i * side;
      for (index j = 0; j < strip_.rows; ++j) {
        if (row[j] >= 0) continue;
        const T* const to = strip_.row(j);
        distances_to(a.row(i), &to, 1, a.cols, row + j);
      }
    }
    return unknown > 0;
  }

 private:
  Measured<T> exactly_;
  MatrixView<T> strip_;
  typename GemmBounds<T>::Strip bounds_;
};

// Every strip of points beside all strips before it, and itself: begin(strip, top, work) says what
// measures its tiles.
template <class T, class Begin>
void each_tile(MatrixView<T> x, const SeeTile<T>& see, Work& work, const index* names,
               Begin&& begin) {
  const index n = x.rows, side = tile_of(x.cols), strips = (n + side - 1) / side;
  // The strip of the most tiles goes first, so that the threads end together.
  work.each(strips, static_cast<double>(n * n * x.cols) / 16, [&](index item, int, Work& own) {
    const index top = (strips - 1 - item) * side;
    const MatrixView<T> b = rows_of(x, top, side);
    auto measured = begin(b, top, own);
    std::vector<T> tile(static_cast<std::size_t>(side * side));
    for (index left = 0; left <= top; left += side) {
      const MatrixView<T> a = rows_of(x, left, side);
      if (measured.measure(left, a, tile.data(), side, own)) {
        for (index i = 0; i < a.rows; ++i) {
          check_overflow(tile.data() + i * side, left + i, top, b.rows, names);
        }
      }
      see({tile.data(), side, left, a.rows, top, b.rows});
    }
  });
}

template <class T>
void each_distance(MatrixView<T> x, const SeeTile<T>& see, Work& work, const index* names) {
  each_tile(x, see, work, names,
            [](MatrixView<T> strip, index, Work&) { return Measured<T>(strip); });
}

}  // namespace

template <class T>
void each_bound(MatrixView<T> x, const SeeTile<T>& see, Work& work, const index* names) {
  if (x.cols > GemmBounds<T>::kWidest) {
    return each_distance(x, see, work, names);
  }
  const GemmBounds<T> bounds(x, work);
  each_tile(x, see, work, names, [&](MatrixView<T> strip, index top, Work& of) {
    return Bounded<T>(strip, top, bounds, of);
  });
}

template <class T>
void euclidean_distances(MatrixView<T> x, T* out, Work& work, const index* names) {
  const auto copy = [=](const simd::DistanceTile<T>& tile) {
    for (index r = 0; r < tile.rows; ++r) {
      const T* row = tile.d + r * tile.stride;
      std::copy(row, row + tile.columns, out + (tile.first + r) * x.rows + tile.second);
    }
    for (index c = 0; c < tile.columns; ++c) {
      T* column = out + (tile.second + c) * x.rows + tile.first;
      for (index r = 0; r < tile.rows; ++r) column[r] = tile.d[r * tile.stride + c];
    }
  };
  each_distance<T>(x, copy, work, names);
}

template <class T>
void distance_rows(MatrixView<T> x, const std::vector<index>& points, T* out, Work& work,
                   const index* names) {
  constexpr index kChunk = 1024;
  const auto rows = static_cast<index>(points.size());
  const std::vector<T> gathered = gather(x, points, work);
  const auto operations = static_cast<double>(rows * x.rows * x.cols) / 8;
  work.each((x.rows + kChunk - 1) / kChunk, operations, [&](index chunk, int, Work& own) {
    const index start = chunk * kChunk;
    const MatrixView<T> to = rows_of(x, start, kChunk);
    distances_between({gathered.data(), rows, x.cols}, to, out + start, x.rows, own);
    for (index r = 0; r < rows; ++r) {
      check_overflow(out + r * x.rows + start, points[r], start, to.rows, names);
    }
  });
}

void distances_to(const float* to, const float* const* rows, index count, index d, float* out) {
  simd::kernels().squares_to_f32(rows, count, to, d, out);
  for (index r = 0; r < count; ++r) {
    out[r] = comfortable(out[r]) ? std::sqrt(out[r])
                                 : static_cast<float>(exact_distance(rows[r], to, d));
  }
}
void distances_to(const double* to, const double* const* rows, index count, index d, double* out) {
  simd::kernels().squares_to_f64(rows, count, to, d, out);
  for (index r = 0; r < count; ++r) out[r] = distance_of(out[r], rows[r], to, d);
}

#define PYFAST_INSTANTIATE(T)                                                      \
  template void each_bound(MatrixView<T>, const SeeTile<T>&, Work&, const index*); \
  template void euclidean_distances(MatrixView<T>, T*, Work&, const index*);       \
  template void distance_rows(MatrixView<T>, const std::vector<index>&, T*, Work&, const index*);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
