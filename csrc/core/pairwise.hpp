// Euclidean distances between many points, by tiles and on several threads, in the points' type.
//
// A distance is the square root of a sum of d squared differences in the order that simd.hpp fixes,
// so it is within (40 + d / 1000) roundings of the exact one, cancels nothing for near duplicates,
// and has the same bits for every tile, thread count and SIMD level.
#pragma once

#include "core/parallel.hpp"
#include "core/views.hpp"

namespace pyfast {

// out[i * n + j] = ||x_i - x_j||_2 for the n rows of x; symmetric with a zero diagonal.
// Throws std::range_error if a distance overflows T; it calls the rows by their `names`, if any.
// A call from inside parallel_for passes 1 thread.
template <class T>
void euclidean_distances(MatrixView<T> x, T* out, int threads, Cancel& cancel, Token& token,
                         const index* names = nullptr);

// out[i * stride + j] = ||x_i - y_j||_2; infinity if that overflows T.
template <class T>
void distances_between(MatrixView<T> x, MatrixView<T> y, T* out, index stride, Token& token);

}  // namespace pyfast
