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

template <class T>
struct SwapCosts {
  static constexpr index lanes = 64 / sizeof(T);
  const T* to;  // points x stride
  index stride, points, k;
  const T *weights, *first, *second;
  const std::int32_t* slots;
};

template <class T>
struct Nearest {
  const T* rows;  // of the candidates, each with its distances to the points
  index stride, points, k;
  const index* medoids;  // rows of the k >= 2 medoids
  const T* weights;
  T *first, *second;    // of each point: distance to its nearest medoid and to the second one
  std::int32_t* slots;  // which medoid is the nearest (the first of equals)
};

// sum_i w_i first_i and sum_i w_i second_i.
template <class T>
struct NearestSums {
  T first, second;
};

// What one stripe gives to a slab of sums (core/sketch.hpp): to[w] += (-1)^S(w) from[w ^ x], for
// all w such that w ^ x < count.
struct StripePiece {
  const float* from;
  const float* next;           // where the next piece begins, to have it fetched meanwhile
  index count;                 // at most the slab's size, which is a multiple of 128
  std::uint32_t x;             // below the slab's size
  const std::uint32_t* words;  // S(w) = bit (w & 31) of words[((w >> 5) & 3) * plane + (w >> 7)]
  index plane;
  float* to;
};

constexpr index kPhiloxLanes = 16;

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

  // out_i = x_i - x_0 rounded to float once; rows of `out` are filled up with zeros to
  // `out_stride`. The same bits for double rows that float holds exactly (double has 2 x 24 + 2
  // bits, so that rounding twice is rounding once).
  void (*centre_f32)(const float* const* x, index rows, index d, float* out, index out_stride);
  void (*centre_f64)(const double* const* x, index rows, index d, float* out, index out_stride);

  // out[j] = sqrt(norm + norms[j] - 2 dots[j]); false if one of the squares is below `share` of the
  // two norms' sum, where it has lost digits, or near the ends of float's range, or not finite.
  bool (*lengths)(float norm, const float* norms, const float* dots, index count, float share,
                  float* out);

  // costs[s * lanes + c] = sum_i w_i min(first_i, d_ic) + sum_{i of slot s} w_i (min(second_i,
  // d_ic) - min(first_i, d_ic)) with d_ic = to[i * stride + c], and least[c] = the least of them
  // over the k slots, for the `lanes` candidates c = 0 .. 15 (float) or 7 (double) side by side;
  // sums in the order of the points.
  void (*swap_costs_f32)(const SwapCosts<float>& in, float* costs, float* least);
  void (*swap_costs_f64)(const SwapCosts<double>& in, double* costs, double* least);

  // Fills `first`, `second` and `slots`. All arrays of points have room up to a multiple of 16
  // (float) or 8 (double), with finite distances and zero weights past `points`.
  NearestSums<float> (*nearest_f32)(const Nearest<float>& in);
  NearestSums<double> (*nearest_f64)(const Nearest<double>& in);

  // The largest of `count` numbers >= 0; a multiple of 16.
  float (*largest)(const float* x, index count);

  // The places of the d[i] < limits[i], ascending, in `places` (room for `count`); how many.
  index (*below_f32)(const float* d, const float* limits, index count, std::int32_t* places);
  index (*below_f64)(const double* d, const double* limits, index count, std::int32_t* places);

  // Whether all numbers are finite (and, if asked, none is below zero).
  bool (*valid_f32)(const float* x, index count, bool nonnegative);
  bool (*valid_f64)(const double* x, index count, bool nonnegative);

  // The Philox4x32-10 block of counter (c0[i], c1[i], c2, c3), its word j to out[j * count + i];
  // `count` is a multiple of kPhiloxLanes.
  void (*philox)(const std::uint32_t* c0, const std::uint32_t* c1, std::uint32_t c2,
                 std::uint32_t c3, const std::uint32_t* key, index count, std::uint32_t* out);

  void (*add_stripe)(const StripePiece& piece);
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
