// Sums of products and of squared differences for the instruction set of the machine.
//
// The same source is compiled once per level and chosen when first used; the environment variable
// PYFAST_SIMD=baseline|avx2|avx512 forces one. Every level gives the same bits: rows are cut into
// chunks of 1024 float or 512 double sums' worth; the sum of a chunk is 16 interleaved float or 8
// interleaved double partial sums (number t goes to sum t mod 16 or 8), each product added with one
// rounding (fused multiply-add), then a tree that halves them; the chunks are added in order. So a
// pair's sum does not depend on the block that it was computed in either. A machine without the
// fused instruction computes it in the C library: the same bits, many times slower.
#pragma once

#include "core/run/views.hpp"

namespace pyfast::simd {

constexpr index kChunkBytes = 4096;  // of numbers of the sums' type

// out[i * out_stride + j] = the sum for row a_i and row b_j, each of d numbers, rows `*_stride`
// numbers apart. 32 rows of a at a time meet all rows of b: put the longer matrix first.
template <class A, class B, class Sum>
using Block = void (*)(const A* a, index rows, index a_stride, const B* b, index cols,
                       index b_stride, index d, Sum* out, index out_stride);

constexpr index kSwapRun = 128;
template <class T>
struct SwapCosts {
  static constexpr index lanes = 64 / sizeof(T);
  const T* to;  // points x stride
  index stride, points, k;
  const T *weights, *first, *second, *barrier;
  const std::int32_t* slots;
  T* runs;  // k x stride of work space, if there are more than kSwapRun points
  // Or null: of each kSwapRun points those of slot s, ascending, are by_slot[starts[s]] up to
  // by_slot[starts[s + 1]], whose k + 1 starts lie one run after the other.
  const std::int32_t *by_slot, *starts;
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

constexpr index kFloatDotsRows = 16, kFloatDotsColumns = 12;
constexpr index kPanelWidth = 16;
// out[i * out_stride + j] = sum_t (x_i[t] - x_j[t])^2 for the pairs of n rows with from <= i < to
// and j < i, and across the diagonal from them; zeros on the diagonal and past the n-th column of
// those i. begin <= t < end, a multiple of 16; a begin past 0, which has to be a chunk's, adds to
// the sums of the numbers before it. x has kSpareRows more entries, for rows that can be read. What
// `ahead` names, which will be needed next, is on its way into the caches at the end.
struct Ahead {
  const void* data = nullptr;
  index bytes = 0;
};
template <class T>
using PairSquares = void (*)(const T* const* x, index n, index from, index to, index begin,
                             index end, T* out, index out_stride, const Ahead& ahead);
constexpr index kSpareRows = 3;
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

constexpr index kProductLanes = 16;
// out[i * rank + j] (+)= sum_t wide[t * wide_stride + i] narrow[t * narrow_stride + j] for i <
// rows, j < rank: one chain of fused multiply-adds a sum, t ascending, from +0 or from what is
// there. Rows of `narrow` can be read up to a multiple of kProductLanes.
struct ProductTile {
  const float* wide;
  index wide_stride;
  const float* narrow;
  index narrow_stride;
  index tokens, rows, rank;
  bool fresh;
  float* out;
};

// The distances of the points of a panel a to those of a panel b, or of two that follow each other,
// d numbers each: the root of norms_i + norms_j - 2 x_i . x_j, or -1 if that times `apart` is less
// than the sum of the norms. They go to out[i * stride + j] for the first `rows` points of a and
// all of b, and to mirrored[j * stride + i] for the first `columns` of b; largest[j] grows to the
// largest of them.
struct PanelPair {
  const float *a, *b;
  index panels, d;  // 1 or 2
  const float *a_norms, *b_norms;
  float apart;
  index rows, columns;
  float *out, *mirrored;
  index stride;
  float* largest;
};

// Distances, or bounds of them, of `rows` points from `first` on to `columns` points from `second`
// on: d[r * stride + c].
template <class T>
struct DistanceTile {
  const T* d;
  index stride, first, rows, second, columns;
};

// Where a matrix of distances goes in bytes, each column at its scale (`to_bytes` in the table);
// nowhere, if there are no scales.
template <class T>
struct ByteRows {
  const T* scales = nullptr;
  unsigned char* bytes = nullptr;
  index stride = 0;
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

  PairSquares<float> pair_squares_f32;
  PairSquares<double> pair_squares_f64;

  // out[i] = sum_t (x_i[t] - y[t])^2 for n rows of d numbers; `_wide` sums float rows in double.
  void (*squares_to_f32)(const float* const* x, index n, const float* y, index d, float* out);
  void (*squares_to_wide)(const float* const* x, index n, const float* y, index d, double* out);
  void (*squares_to_f64)(const double* const* x, index n, const double* y, index d, double* out);

  // out_i = x_i - centre rounded to float (no centre: zeros), for rows `out_stride` numbers apart
  // and filled up with zeros. Whether all numbers are exact.
  bool (*narrow)(const double* const* x, index rows, index d, const double* centre, float* out,
                 index out_stride);

  // Square roots of n rows of squares, in place; `stride` is a multiple of 16. row_largest[i] is
  // the largest of row i. False if a square is zero that is not on the diagonal or past the n-th
  // column, or near the ends of float's range, or not finite.
  bool (*roots)(float* squares, index n, index stride, float* row_largest);

  // costs[s * stride + c] = sum_i w_i min(first_i, d_ic) + sum_{i of slot s} w_i (min(second_i,
  // d_ic) - min(first_i, d_ic)) with d_ic = to[i * stride + c], and least[c] = barrier[c] + the
  // least of them over the k slots, for the candidates c = from .. from + count - 1, multiples of
  // 16 (float) or 8 (double); sums in the order of the points, or of by_slot, those of kSwapRun of
  // them apart, so that a term meets few roundings. Returns the least of `least`.
  float (*swap_costs_f32)(const SwapCosts<float>& in, index from, index count, float* costs,
                          float* least);
  double (*swap_costs_f64)(const SwapCosts<double>& in, index from, index count, double* costs,
                           double* least);

  // Fills `first`, `second` and `slots`. All arrays of points have room up to a multiple of 16
  // (float) or 8 (double), with finite distances and zero weights past `points`.
  NearestSums<float> (*nearest_f32)(const Nearest<float>& in);
  NearestSums<double> (*nearest_f64)(const Nearest<double>& in);

  // The places of the d[i] < limits[i], ascending, in `places` (room for `count`); how many.
  index (*below_f32)(const float* d, const float* limits, index count, std::int32_t* places);
  index (*below_f64)(const double* d, const double* limits, index count, std::int32_t* places);

  // bytes[i] = the whole part of d[i] * scales[i], from 0 to 255.
  void (*to_bytes_f32)(const float* d, const float* scales, index count, unsigned char* bytes);
  void (*to_bytes_f64)(const double* d, const double* scales, index count, unsigned char* bytes);

  // A tile in bytes, in its rows and, unless it lies on the diagonal, in those of its mirror image.
  void (*tile_to_bytes_f32)(const DistanceTile<float>& tile, const ByteRows<float>& bytes);
  void (*tile_to_bytes_f64)(const DistanceTile<double>& tile, const ByteRows<double>& bytes);

  // The places of the bytes[i] <= limits[i], ascending, in `places` (room for `count` and 4 more);
  // how many.
  index (*within)(const unsigned char* bytes, const unsigned char* limits, index count,
                  std::int32_t* places);

  // Whether the distances d (n x n) in the 64 rows from `top` on, from column `top` on, and those
  // across the diagonal from them are surely finite, >= 0 and close to each other, as far as
  // distance/check.hpp asks. False may mean that rounding leaves it open. They go to `bytes` on the
  // way.
  bool (*mirrored_f32)(const float* d, index n, index top, const ByteRows<float>& bytes);
  bool (*mirrored_f64)(const double* d, index n, index top, const ByteRows<double>& bytes);

  // Whether all numbers are finite (and, if asked, none is below zero).
  bool (*valid_f32)(const float* x, index count, bool nonnegative);
  bool (*valid_f64)(const double* x, index count, bool nonnegative);

  // out[i] = sum_t x_it^2 in double, rows `stride` numbers apart; summed as dot_wide and dot_f64
  // do, so float and double rows of the same values agree.
  void (*squared_norms_f32)(const float* x, index rows, index stride, index d, double* out);
  void (*squared_norms_f64)(const double* x, index rows, index stride, index d, double* out);

  // out[i * out_stride + j] = about sum_t rows[i][t] columns[j * column_stride + t], for at most
  // kFloatDotsRows x kFloatDotsColumns pairs: in float, as is fastest, so the bits differ between
  // levels. On its way to the sum a product meets at most 75 + d / 256 roundings.
  void (*float_dots)(const float* const* rows, index n_rows, const float* columns, index n_columns,
                     index column_stride, index d, float* out, index out_stride);
  // out[i * out_stride + p * kPanelWidth + c] = about sum_t a[i * a_stride + t]
  // panels[p * apart + t * kPanelWidth + c] for n rows of d numbers and `count` panels of
  // kPanelWidth columns: in float, as is fastest. On its way to the sum a product meets at most
  // 260 + d / 256 roundings.
  void (*panel_dots)(const float* a, index n, index a_stride, const float* panels, index count,
                     index apart, index d, float* out, index out_stride);
  // panel[t * kPanelWidth + c] = rows[c * stride + t] for kPanelWidth rows of d numbers, a multiple
  // of 4.
  void (*to_panel)(const float* rows, index stride, index d, float* panel);
  // The Philox4x32-10 block of counter (c0[i], c1[i], c2, c3), its word j to out[j * count + i];
  // `count` is a multiple of kPhiloxLanes.
  void (*philox)(const std::uint32_t* c0, const std::uint32_t* c1, std::uint32_t c2,
                 std::uint32_t c3, const std::uint32_t* key, index count, std::uint32_t* out);

  void (*add_stripe)(const StripePiece& piece);
  void (*add_products)(const ProductTile& tile);

  // Sums of twice the digits, and d x d matrices, row-major (simd/factor_kernels.hpp).
  void (*add_scaled)(double a, const double* x, index count, double* high, double* low);
  void (*factorise)(double* a, index d);
  void (*forward)(const double* factor, index d, double* x);
  void (*backward)(const double* factor, index d, double* x, double* out);
  void (*invert)(const double* factor, index d, double* inverse);

  // How many of rows x kPanelWidth pairs got -1. On its way to x_i . x_j a product meets at most
  // 34 + d / 32 roundings.
  index (*panel_distances)(const PanelPair& in);
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
