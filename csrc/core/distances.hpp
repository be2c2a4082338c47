// Pairwise Euclidean distances.
#pragma once

#include "core/parallel.hpp"
#include "core/views.hpp"

namespace pyfast {

// sum_t (a_t - b_t)^2 over d numbers, in the precision of T. The order of summation is fixed
// (16 interleaved partial sums, then a tree), whatever the instruction set.
template <class T>
T squared_distance(const T* a, const T* b, index d);

// out[i * n + j] = ||x_i - x_j||_2 for the n rows of x; symmetric with a zero diagonal.
// Throws std::range_error if a distance overflows T.
template <class T>
void euclidean_distances(MatrixView<T> x, T* out, Token& token);

}  // namespace pyfast
