// Pairwise Euclidean distances.
#pragma once

#include <vector>

#include "core/run/memory.hpp"
#include "core/run/views.hpp"
#include "core/run/work.hpp"
#include "simd/simd.hpp"

namespace pyfast {

// Groups of up to so many points get exact distances in double.
constexpr index kSmall = 128;

// The relative error of one float operation.
constexpr double kFloatRounding = 0x1.0p-24;

// sum_t (a_t - b_t)^2 over d numbers, in the precision of the rows and in the order that simd.hpp
// fixes.
float squared_distance(const float* a, const float* b, index d);
double squared_distance(const double* a, const double* b, index d);

// Whether a sum of squares in double has kept its digits: a square below 1e-290 may have terms that
// underflowed, and sums of fewer than 1e15 others do not overflow.
inline bool comfortable_square(double square) { return square > 1e-290 && square < 1e290; }

// ||a - b||_2 in double arithmetic, the same bits for float rows and double rows of equal numbers.
// Of any rows of finite numbers; infinity if the distance itself overflows.
double exact_distance(const float* a, const float* b, index d);
double exact_distance(const double* a, const double* b, index d);

// The same, given the square that the kernels found: rows are only read again, at a scale of their
// own, where it is not comfortable.
double distance_of(double square, const float* a, const float* b, index d);
double distance_of(double square, const double* a, const double* b, index d);

// "the distance between points i and j overflows", as a std::range_error.
[[noreturn]] void throw_overflow(index i, index j);

// out[i * n + j] = 2^shift exact_distance(x_i, x_j) for the n rows of x; returns the shift. It is 0
// unless distances are so small that double holds few of their digits (they are measured between
// larger rows then) or so large that a sum of them would overflow. Throws throw_overflow's error.
template <class T>
int exact_distances(MatrixView<T> x, double* out, Work& work);

// out[i * stride + j] = ||x_i - x_j||^2 in double arithmetic, the same bits for float rows and
// double rows of equal numbers. Not checked for overflow.
template <class T>
void exact_squares(MatrixView<T> x, double* out, index stride, Work& work);

// out[i * stride + j] = ||x_i - x_j||^2 in T for n rows of `width` numbers, laid out as simd.hpp's
// pair_squares asks.
template <class T>
void pair_squares(const T* const* rows, index n, index width, T* out, index stride,
                  const simd::Ahead& ahead, Work& work);

// exact_squares of rows anywhere, faster; the workspace grows and stays.
class ExactSquares {
 public:
  template <class T>
  void measure(const T* const* rows, index n, index d, double* out, index stride, Work& work);

 private:
  AlignedRows<double> wide_;
  std::vector<const double*> rows_;
};

}  // namespace pyfast
