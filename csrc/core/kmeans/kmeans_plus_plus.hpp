// What k-means on coordinates and k-means on squared distances share: the start and the refilling
// of empty clusters.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "core/run/random.hpp"
#include "core/run/views.hpp"

namespace pyfast {

inline double finite_inertia(long double inertia) {
  const auto value = static_cast<double>(inertia);
  if (!std::isfinite(value)) {
    throw std::range_error("a squared distance overflows float64; scale the points down");
  }
  return value;
}

// The point whose cumulated squared distance passes u times the total. With a total of zero every
// point sits on a centre already: point 0 comes back, and Lloyd refills the empty cluster.
template <class Real>
index draw_weighted(const std::vector<Real>& squared, Real total, double u) {
  const index n = static_cast<index>(squared.size());
  Real left = u * total;
  index last = 0;
  for (index i = 0; i < n; ++i) {
    if (squared[i] <= 0) continue;
    last = i;
    left -= squared[i];
    if (left < 0) return i;
  }
  return last;  // rounding left a crumb
}

// k-means++ (Arthur and Vassilvitskii 2007) in the greedy form that scikit-learn uses: of
// 2 + floor(log k) draws, keep the one that lowers the potential most. Returns the k points that
// are the first centres; square(i, j) is the squared distance of two points.
template <class Real, class Square>
std::vector<index> plus_plus(index n, index k, Square&& square, Random& random) {
  const int trials = 2 + static_cast<int>(std::log(static_cast<double>(k)));
  std::vector<index> centres;
  std::vector<Real> nearest(static_cast<std::size_t>(n), std::numeric_limits<Real>::infinity());
  std::vector<Real> trial(nearest), kept(nearest);

  const auto potential = [&](index centre) {
    Real sum = 0;
    for (index i = 0; i < n; ++i) {
      trial[i] = std::min(nearest[i], square(i, centre));
      sum += trial[i];
    }
    return sum;
  };

  centres.push_back(random.below(n));
  Real total = potential(centres[0]);
  nearest.swap(trial);
  for (index c = 1; c < k; ++c) {
    index best = -1;
    Real best_total = 0;
    for (int t = 0; t < trials; ++t) {
      const index candidate = draw_weighted(nearest, total, random.uniform());
      const Real sum = potential(candidate);
      if (best < 0 || sum < best_total) {
        best = candidate;
        best_total = sum;
        kept.swap(trial);
      }
    }
    nearest.swap(kept);
    total = best_total;
    centres.push_back(best);
  }
  return centres;
}

// An empty cluster takes the point farthest from its own centre (lowest index of equals) out of a
// cluster that has others.
template <class Real>
void refill_cluster(index empty, std::vector<index>& labels, std::vector<Real>& squares,
                    std::vector<index>& sizes) {
  index farthest = -1;
  for (index i = 0; i < static_cast<index>(labels.size()); ++i) {
    if (sizes[labels[i]] > 1 && (farthest < 0 || squares[i] > squares[farthest])) farthest = i;
  }
  --sizes[labels[farthest]];
  labels[farthest] = empty;
  squares[farthest] = 0;
  sizes[empty] = 1;
}

}  // namespace pyfast
