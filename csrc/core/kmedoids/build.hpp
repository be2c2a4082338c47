// Where a search starts.
#pragma once

#include <limits>
#include <vector>

#include "core/kmedoids/problem.hpp"
#include "core/run/random.hpp"

namespace pyfast {

// BUILD of Kaufman and Rousseeuw: each time the candidate that lowers the cost most; ties to the
// lowest index. Returned in the order of choice.
template <class T>
std::vector<index> greedy_start(const KMedoidsProblem<T>& problem, Work& work) {
  constexpr double kFar = std::numeric_limits<double>::infinity();
  const index n = problem.points();
  std::vector<index> chosen;
  std::vector<char> taken(static_cast<std::size_t>(problem.candidates()), 0);
  std::vector<double> nearest(static_cast<std::size_t>(n), kFar);
  while (static_cast<index>(chosen.size()) < problem.k) {
    index best = -1;
    double best_cost = kFar;
    for (index j = 0; j < problem.candidates(); ++j) {
      if (taken[j]) continue;
      work.spend(n);
      const T* row = problem.distances.row(j);
      double cost = 0;
      for (index i = 0; i < n; ++i) {
        cost += problem.weights[i] * std::min(nearest[i], static_cast<double>(row[i]));
      }
      if (best < 0 || cost < best_cost) {
        best = j;
        best_cost = cost;
      }
    }
    chosen.push_back(best);
    taken[best] = 1;
    const T* row = problem.distances.row(best);
    for (index i = 0; i < n; ++i) nearest[i] = std::min(nearest[i], static_cast<double>(row[i]));
  }
  return chosen;
}

// A start that needs no distances.
inline std::vector<index> plain_start(const KMedoidsOptions& options, index n, index k, index run,
                                      Work& work) {
  if (run == 0 && options.init == KMedoidsOptions::Init::given) {
    return {options.given, options.given + k};
  }
  return random_subset(n, k, options.seed, static_cast<std::uint32_t>(run), work);
}

template <class T>
std::vector<index> start_of(index run, const KMedoidsProblem<T>& problem,
                            const KMedoidsOptions& options, Work& work) {
  if (run == 0 && options.init == KMedoidsOptions::Init::greedy) return greedy_start(problem, work);
  return plain_start(options, problem.candidates(), problem.k, run, work);
}

}  // namespace pyfast
