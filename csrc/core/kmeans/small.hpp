// k-means of a group of a few dozen points on nothing but their squared distances: with D2 at hand,
//   ||x_i - mean_C||^2 = mean_{l in C} D2_il - 1/2 mean_{l, l' in C} D2_ll',
// so that no centre and no coordinate is ever touched, whatever their dimension.
#pragma once

#include "core/kmeans/kmeans.hpp"

namespace pyfast {

// As kmeans() in kmeans.hpp; `squares` is n x n, symmetric, with a zero diagonal.
KMeansSolution small_kmeans(const double* squares, index n, index k, const KMeansOptions& options,
                            Work& work);

}  // namespace pyfast
