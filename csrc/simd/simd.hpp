// Sums of products and of squared differences for the instruction set of the machine.
//
// The same source is compiled once per level and chosen when first used; the environment variable
// PYFAST_SIMD=baseline|avx2|avx512 forces one. Every level gives the same bits: rows are cut into
// chunks of 1024 float or 512 double sums' worth; the sum of a chunk is 16 interleaved float or 8
// interleaved double partial sums (number t goes to sum t mod 16 or 8), then a tree that halves
// them; the chunks are added in order; no fused multiply-add. So a pair's sum does not depend on
// the block that it was computed in either.
#pragma once

#include "core/views.hpp"

namespace pyfast::simd {

// out[i * out_stride + j] = the sum for row a_i and row b_j, each of d numbers, rows `*_stride`
// numbers apart. 32 rows of a at a time meet all rows of b: put the longer matrix first.
template <class A, class B, class Sum>
using Block = void (*)(const A* a, index rows, index a_stride, const B* b, index cols,
                       index b_stride, index d, Sum* out, index out_stride);

struct Kernels {
  const char* level;

  // sum_t a_t b_t, and sum_t (a_t - b_t)^2. `_f32` and `_f64` stay in the type of their rows;
  // `_wide` turns float rows into double first, `_mixed` takes float rows a and double rows b.
  Block<float, float, float> dot_f32, squared_distance_f32;
  Block<double, double, double> dot_f64, squared_distance_f64;
  Block<float, float, double> dot_wide, squared_distance_wide;
  Block<float, double, double> dot_mixed;

  // y += a x
  void (*axpy)(double a, const double* x, double* y, index n);
};

// The level in use. Throws std::invalid_argument if PYFAST_SIMD names one that is unknown, or that
// this build or this machine lacks.
const Kernels& kernels();

// The level of that name, or nullptr if this build or this machine lacks it.
const Kernels* find_level(const char* name);

// One pair of rows.
inline double dot(const double* a, const double* b, index d) {
  double sum;
  kernels().dot_f64(a, 1, 0, b, 1, 0, d, &sum, 1);
  return sum;
}
inline double dot(const float* a, const float* b, index d) {
  double sum;
  kernels().dot_wide(a, 1, 0, b, 1, 0, d, &sum, 1);
  return sum;
}
inline double dot(const float* a, const double* b, index d) {
  double sum;
  kernels().dot_mixed(a, 1, 0, b, 1, 0, d, &sum, 1);
  return sum;
}

}  // namespace pyfast::simd
