// The k-medoids problems of a call's groups, from points or from distances laid end to end.
#pragma once

#include <vector>

#include "bind/args.hpp"
#include "core/big_array.hpp"
#include "core/distances.hpp"
#include "core/kmedoids.hpp"
#include "core/pairwise.hpp"
#include "core/small_search.hpp"

namespace pyfast::bind {

// What a group is solved with.
struct Means {
  int threads;
  Cancel& cancel;
  Token& token;
};

// Calls solve(problem) for the points of one group. Small groups get exact distances; in large ones
// they take the type of the points.
template <class T, class Solve>
void with_distances(MatrixView<T> x, const double* weights, index k, const Means& means,
                    Solve&& solve) {
  const index count = x.rows * x.rows;
  if (x.rows <= kSmall) {
    std::vector<double> distances(static_cast<std::size_t>(count));
    exact_distances(x, distances.data(), means.token);
    solve(KMedoidsProblem<double>{{distances.data(), x.rows, x.rows}, weights, k});
  } else {
    const BigArray<T> distances = big_array<T>(count);
    euclidean_distances(x, distances.get(), means.threads, means.cancel, means.token);
    solve(KMedoidsProblem<T>{{distances.get(), x.rows, x.rows}, weights, k});
  }
}

// Where the n_b x n_b distances of each group start.
inline std::vector<index> square_starts(const Groups& groups, index total) {
  std::vector<index> starts{0};
  for (index b = 0; b < groups.count; ++b) {
    starts.push_back(starts.back() + groups.size(b) * groups.size(b));
  }
  if (starts.back() != total) throw py::type_error("D: expected sum of n_b^2 distances");
  return starts;
}

}  // namespace pyfast::bind
