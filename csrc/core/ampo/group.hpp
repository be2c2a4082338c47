// AMPO's three ways to choose k negatives beside the best of one group of responses
// (AMPO, Algorithm 1): Opt-Select (Algorithm 4, Appendix E), Coreset (Algorithm 2), Bottom-k (5).
//
// The positive is the first response of the highest reward and leaves the pool; k at or above the
// pool's size takes the whole pool. Indices are positions in the group.
#pragma once

#include <algorithm>
#include <vector>

#include "core/kmeans/kmeans.hpp"
#include "core/kmedoids/problem.hpp"

namespace pyfast {

struct GroupSelection {
  index positive = 0;
  std::vector<index> negatives;
  double cost = 0;  // Opt-Select: k-medoids cost; Coreset: inertia; Bottom-k: sum of rewards
  index swaps = 0;  // Opt-Select: swaps of the winning start
};

inline index first_highest(const double* rewards, index n) {
  return std::max_element(rewards, rewards + n) - rewards;
}

// The group's indices without the positive, ascending.
inline std::vector<index> pool_of(index n, index positive) {
  std::vector<index> pool;
  pool.reserve(static_cast<std::size_t>(n));
  for (index i = 0; i < n; ++i) {
    if (i != positive) pool.push_back(i);
  }
  return pool;
}

// Weighted k-medoids on the pool: distances scaled by the largest, rewards by min-max over the
// group (all equal: 0.5), w_i = exp(mean r - r_i). Points and mean are the pool's (Appendix E) or,
// with cover_top, the whole group's (Algorithm 4); candidates are always the pool's.
// Negatives ascend.
template <class T>
GroupSelection opt_select(MatrixView<T> embeddings, const double* rewards, index k, bool cover_top,
                          const KMedoidsOptions& options, Work& work);

// k-means on the pool, then the lowest reward of each cluster (lowest index of equals).
// Negatives ascend.
template <class T>
GroupSelection coreset(MatrixView<T> embeddings, const double* rewards, index k,
                       const KMeansOptions& options, ExactSquares& workspace, Work& work);

// The k lowest rewards of the pool, lowest first. Among equals: smallest of the largest cosine
// similarities to those chosen before (if embeddings are given), then lowest index.
template <class T>
GroupSelection bottom_k(MatrixView<T> embeddings, const double* rewards, index n, index k,
                        Work& work);

}  // namespace pyfast
