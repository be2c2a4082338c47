// k-medoids of more points than an n x n matrix has room for: the swap search on a sample of the
// points, then exact swaps on all of them.
//
// Kaufman and Rousseeuw's CLARA with one large sample that stands for the whole: OneBatchPAM (de
// Mathelin et al., AAAI 2025) evaluates all n candidates on few columns; with as many distances, a
// square sample has more of both where they matter, and half of it is known by symmetry.
#pragma once

#include <vector>

#include "core/kmedoids/problem.hpp"
#include "core/run/work.hpp"

namespace pyfast {

struct WeightedSample {
  std::vector<index> points;  // ascending, distinct
  std::vector<double> weights;
};

// One draw from each of `draws` equal parts of the total weight: a point drawn c times weighs c
// parts. Points that weigh a part or more are taken as they are, and the parts are those of the
// others. Points of `extra` and the first ones are added without weight until there are `least`.
WeightedSample weighted_sample(const double* weights, index n, index draws, index least,
                               std::uint64_t seed, std::uint32_t stream,
                               const std::vector<index>& extra);

// Each of n_init searches has a sample of `sample_size` points to itself. Of the sets found, and of
// a given start, the one that costs least on all points is polished by rounds of exact swaps
// (polish.hpp), until none improves the cost of all points: so no given start was better. Fills
// labels[i] like assign(). Takes sizeof(T) + 1 bytes for each of sample_size^2 distances, then
// about 2 sizeof(T) k n + 100 n. The result does not depend on the threads.
template <class T>
KMedoidsSolution sampled_kmedoids(const KMedoidsPoints<T>& points, const KMedoidsOptions& options,
                                  Work& work, index* labels);

}  // namespace pyfast
