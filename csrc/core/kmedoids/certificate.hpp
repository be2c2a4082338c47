// How far a k-medoids solution can be from the optimum: a lower bound from Lagrangian relaxation
// (Cornuejols, Fisher and Nemhauser, Management Science 23, 1977). With a price u_i for serving
// point i and costs c_ij = w_i d_ij, every set of k candidates costs at least
//
//   L(u) = sum_i u_i + the sum of the k least rho_j,   rho_j = sum_i min(0, c_ij - u_i).
//
// Subgradient steps raise L. A candidate j that would lift L to the known cost belongs to no
// cheaper set: it is left out from then on, which raises L further.
#pragma once

#include <vector>

#include "core/kmedoids/problem.hpp"
#include "core/run/work.hpp"

namespace pyfast {

struct Certificate {
  double bound = 0;  // at most the optimum, and at most `cost`, which has its own rounding
  // Of each candidate: whether a set that is cheaper than `cost` may contain it. If fewer than k
  // are open, there is no cheaper set.
  std::vector<char> open;
};

// For the set `medoids`, whose cost was found to be `cost`. The result does not depend on the
// threads.
template <class T>
Certificate certify(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids,
                    double cost, Work& work);

// A solution of one group. The first `candidates` of its points may become medoids. With `unit`,
// the cost is of distances divided by the group's largest.
struct Solved {
  std::vector<index> medoids;
  index candidates;
  double cost;
  bool unit;
};

// The same for distances and points as they come, however large or small their numbers are.
template <class T>
Certificate certify_distances(MatrixView<T> distances, const double* weights, const Solved& solved,
                              Work& work);
template <class T>
Certificate certify_points(MatrixView<T> x, const double* weights, const Solved& solved,
                           Work& work);

}  // namespace pyfast
