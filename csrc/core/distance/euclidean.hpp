// Euclidean distances between many points, by tiles and on several threads, in the points' type.
//
// A distance is the square root of a sum of d squared differences in the order that simd.hpp fixes,
// so it is within (40 + d / 1000) roundings of the exact one, cancels nothing for near duplicates,
// and has the same bits for every tile, thread count and SIMD level.
#pragma once

#include <functional>
#include <vector>

#include "core/run/views.hpp"
#include "core/run/work.hpp"
#include "simd/simd.hpp"

namespace pyfast {

// out[i * n + j] = ||x_i - x_j||_2 for the n rows of x; symmetric with a zero diagonal.
// Throws std::range_error if a distance overflows T; it calls the rows by their `names`, if any.
template <class T>
void euclidean_distances(MatrixView<T> x, T* out, Work& work, const index* names = nullptr);

// Without a matrix, and sooner: see(tile) is given numbers that the distances do not fall below
// (gemm_bounds.hpp), from any of the threads. Each pair of points is in one tile, whose second
// points are not before the first ones; both of its orders, where they are the same points.
template <class T>
using SeeTile = std::function<void(const simd::DistanceTile<T>& tile)>;
template <class T>
void each_bound(MatrixView<T> x, const SeeTile<T>& see, Work& work, const index* names = nullptr);

// out[r * n + i] = ||x_points[r] - x_i||_2 for all n rows of x. Throws as euclidean_distances().
template <class T>
void distance_rows(MatrixView<T> x, const std::vector<index>& points, T* out, Work& work,
                   const index* names = nullptr);

// out[r] = ||to - rows[r]||_2 for `count` rows of d numbers; infinity if that overflows.
void distances_to(const float* to, const float* const* rows, index count, index d, float* out);
void distances_to(const double* to, const double* const* rows, index count, index d, double* out);

}  // namespace pyfast
