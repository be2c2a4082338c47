#include "core/distance/exact.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/distance/scaling.hpp"
#include "simd/simd.hpp"

namespace pyfast {

float squared_distance(const float* a, const float* b, index d) {
  float squared;
  simd::kernels().squared_distance_f32(a, 1, 0, b, 1, 0, d, &squared, 1);
  return squared;
}
double squared_distance(const double* a, const double* b, index d) {
  double squared;
  simd::kernels().squared_distance_f64(a, 1, 0, b, 1, 0, d, &squared, 1);
  return squared;
}

double exact_distance(const float* a, const float* b, index d) {
  double squared;
  simd::kernels().squared_distance_wide(a, 1, 0, b, 1, 0, d, &squared, 1);
  return std::sqrt(squared);
}
double exact_distance(const double* a, const double* b, index d) {
  return distance_of(squared_distance(a, b, d), a, b, d);
}

namespace {

// Of differences times the power of two that brings the largest near 1: their squares neither
// overflow nor vanish beside it.
double scaled_distance(const double* a, const double* b, index d) {
  const auto count = static_cast<std::size_t>(d);
  if (std::memcmp(a, b, count * sizeof(double)) == 0 && std::isfinite(a[0] - b[0])) return 0;
  std::vector<double> differences(count);
  double largest = 0;
  for (std::size_t t = 0; t < count; ++t) {
    differences[t] = a[t] - b[t];
    if (!std::isfinite(differences[t])) return std::abs(differences[t]);
    largest = std::max(largest, std::abs(differences[t]));
  }
  if (largest == 0) return 0;
  const int exponent = std::ilogb(largest);
  scale_by_power_of_two(differences.data(), d, -exponent);
  double squared;
  simd::kernels().squared_norms_f64(differences.data(), 1, d, d, &squared);
  return std::ldexp(std::sqrt(squared), exponent);
}

}  // namespace

// Squares of differences of floats fit a double.
double distance_of(double square, const float*, const float*, index) { return std::sqrt(square); }
double distance_of(double square, const double* a, const double* b, index d) {
  return comfortable_square(square) ? std::sqrt(square) : scaled_distance(a, b, d);
}

void throw_overflow(index i, index j) {
  throw std::range_error("the distance between points " + std::to_string(std::min(i, j)) + " and " +
                         std::to_string(std::max(i, j)) + " overflows; scale the points down");
}

template <class T>
void exact_squares(MatrixView<T> x, double* out, index stride, Work& work) {
  const index n = x.rows, d = x.cols;
  // Columns at a time, from the diagonal down, by as many rows as an interrupt can wait for.
  const index panel = d <= 1 << 18 ? 6 : 1;
  const index some = std::max<index>(Work::fitting(panel * d), 4);
  const simd::Kernels& kernels = simd::kernels();
  for (index j = 0; j < n; j += panel) {
    const index cols = std::min(panel, n - j);
    for (index i = j; i < n; i += some) {
      const index rows = std::min(some, n - i);
      work.spend(rows * cols * d);
      double* to = out + i * stride + j;
      if constexpr (sizeof(T) == sizeof(float)) {
        kernels.squared_distance_wide(x.row(i), rows, d, x.row(j), cols, d, d, to, stride);
      } else {
        kernels.squared_distance_f64(x.row(i), rows, d, x.row(j), cols, d, d, to, stride);
      }
    }
  }
  for (index i = 0; i < n; ++i) {
    for (index j = 0; j < i; ++j) out[j * stride + i] = out[i * stride + j];
  }
}

namespace {

simd::PairSquares<float> pair_kernel(float) { return simd::kernels().pair_squares_f32; }
simd::PairSquares<double> pair_kernel(double) { return simd::kernels().pair_squares_f64; }

}  // namespace

// Block by block of rows, each with all rows before it, by as many of their numbers as an interrupt
// can wait for: the block stays in the second-level cache.
template <class T>
void pair_squares(const T* const* rows, index n, index width, T* out, index stride,
                  const simd::Ahead& ahead, Work& work) {
  constexpr index kBlockBytes = 1 << 18, kLeast = 24;
  constexpr index kChunk = simd::kChunkBytes / static_cast<index>(sizeof(T));
  const index fitting = kBlockBytes / (width * static_cast<index>(sizeof(T)) + 1);
  const index block = std::max(fitting / kLeast * kLeast, kLeast);
  const index blocks = std::max<index>((n + block - 1) / block, 1);
  const auto measure = [&](index item, int, Work& own) {
    const index from = (blocks - 1 - item) * block, to = std::min(from + block, n);  // most first
    const index pairs = (to - from) * (to + from) / 2;
    const index some = Work::fitting(pairs * kChunk / 8) * kChunk;
    for (index t = 0; t == 0 || t < width; t += some) {
      const index end = std::min(t + some, width);
      own.spend(pairs * (end - t) / 2);
      pair_kernel(T{})(rows, n, from, to, t, end, out, stride, item == 0 ? ahead : simd::Ahead{});
    }
  };
  work.each(blocks, static_cast<double>(n * n * width) / 16, measure);
}

template <class T>
void ExactSquares::measure(const T* const* rows, index n, index d, double* out, index stride,
                           Work& work) {
  const index width = (d + 15) / 16 * 16;
  wide_.resize(n, width, work);
  rows_.clear();
  for (index i = 0; i < n; ++i) {
    double* to = wide_.row(i);
    work.spend(d);
    std::copy(rows[i], rows[i] + d, to);
    std::fill(to + d, to + width, 0.0);
    rows_.push_back(to);
  }
  rows_.insert(rows_.end(), simd::kSpareRows, wide_.row(0));
  pair_squares(rows_.data(), n, width, out, stride, {}, work);
}

namespace {

// Into `out`; returns the largest.
template <class T>
double measure_exactly(MatrixView<T> x, double* out, Work& work) {
  const index n = x.rows;
  exact_squares(x, out, n, work);
  double largest = 0;
  for (index i = 0; i < n; ++i) {
    for (index j = 0; j < i; ++j) {
      const double distance = distance_of(out[i * n + j], x.row(i), x.row(j), x.cols);
      if (!std::isfinite(distance)) throw_overflow(j, i);
      out[i * n + j] = out[j * n + i] = distance;
      largest = std::max(largest, distance);
    }
    if (out[i * n + i] != 0) throw_overflow(i, i);  // what is not finite is not at 0 from itself
  }
  return largest;
}

}  // namespace

template <class T>
int exact_distances(MatrixView<T> x, double* out, Work& work) {
  constexpr double kLeast = 1e-280, kMost = 1e306;
  const double largest = measure_exactly(x, out, work);
  if (largest > kMost) {
    constexpr int kDown = -16;  // a hundred of them can be added up
    scale_by_power_of_two(out, x.rows * x.rows, kDown);
    return kDown;
  }
  if (largest == 0 || largest >= kLeast) return 0;
  const int shift = -std::ilogb(largest);
  const LiftedPoints<double> lifted(x, shift, work);
  measure_exactly(lifted.view(), out, work);
  return shift;
}

template void exact_squares<float>(MatrixView<float>, double*, index, Work&);
template void exact_squares<double>(MatrixView<double>, double*, index, Work&);
template void pair_squares<float>(const float* const*, index, index, float*, index,
                                  const simd::Ahead&, Work&);
template void ExactSquares::measure<float>(const float* const*, index, index, double*, index,
                                           Work&);
template void ExactSquares::measure<double>(const double* const*, index, index, double*, index,
                                            Work&);
template int exact_distances<float>(MatrixView<float>, double*, Work&);
template int exact_distances<double>(MatrixView<double>, double*, Work&);

}  // namespace pyfast
