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

#include "core/kmedoids/kmedoids.hpp"

namespace pyfast {

struct Certificate {
  double bound = 0;  // at most the optimum, and at most `cost`, which has its own rounding
  // Of each candidate: whether a set that is cheaper than `cost` may contain it. If fewer than k
  // are open, there is no cheaper set.
  std::vector<char> open;
};

// For the set `medoids`, whose cost was found to be `cost`. A call from inside parallel_for passes
// 1 thread; the result does not depend on their number.
template <class T>
Certificate certify(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids,
                    double cost, int threads, Cancel& cancel, Token& token);

}  // namespace pyfast
