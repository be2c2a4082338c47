// Small k-means in float64: Lloyd's algorithm from a k-means++ start.
#pragma once

#include <vector>

#include "core/distance/exact.hpp"
#include "core/run/views.hpp"
#include "core/run/work.hpp"

namespace pyfast {

struct KMeansOptions {
  index n_init = 1;
  index max_iter = 300;
  std::uint64_t seed = 0;
};

struct KMeansSolution {
  std::vector<index> labels;  // cluster of each point; every one of the k clusters has a member
  double inertia = 0;         // sum of squared distances to the cluster means
  index iterations = 0;
};

// 1 <= k <= x.rows. A cluster left empty takes the point farthest from its own centre (lowest
// index of equals) out of a cluster that has others, so that exactly k clusters come back even
// when fewer than k points differ. Stops when no label changes, or after max_iter rounds.
// Throws std::range_error if a squared distance overflows.
template <class T>
KMeansSolution kmeans(MatrixView<T> x, index k, const KMeansOptions& options,
                      ExactSquares& workspace, Work& work);

}  // namespace pyfast
