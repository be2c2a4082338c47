#include "core/naive/kmedoids.hpp"

#include <algorithm>
#include <limits>

namespace pyfast::naive {

double cost(const KMedoidsProblem<double>& problem, const std::vector<index>& medoids) {
  double sum = 0;
  for (index i = 0; i < problem.points(); ++i) {
    double nearest = std::numeric_limits<double>::infinity();
    for (const index j : medoids) nearest = std::min(nearest, problem.distances.row(j)[i]);
    sum += problem.weights[i] * nearest;
  }
  return sum;
}

std::vector<std::vector<index>> best_trajectory(const KMedoidsProblem<double>& problem,
                                                std::vector<index> start) {
  std::sort(start.begin(), start.end());
  std::vector<std::vector<index>> visited{start};
  for (;;) {
    const std::vector<index> now = visited.back();
    const double now_cost = cost(problem, now);
    std::vector<index> best;
    double best_gain = kImprovement * now_cost;
    for (std::size_t out = 0; out < now.size(); ++out) {
      for (index in = 0; in < problem.candidates(); ++in) {
        if (std::find(now.begin(), now.end(), in) != now.end()) continue;
        std::vector<index> other = now;
        other[out] = in;
        const double gain = now_cost - cost(problem, other);
        if (gain > best_gain) {
          best_gain = gain;
          best = other;
        }
      }
    }
    if (best.empty()) return visited;
    std::sort(best.begin(), best.end());
    visited.push_back(best);
  }
}

double optimum(const KMedoidsProblem<double>& problem) {
  const index m = problem.candidates();
  std::vector<char> pick(static_cast<std::size_t>(m), 0);
  std::fill(pick.begin(), pick.begin() + problem.k, 1);
  double least = std::numeric_limits<double>::infinity();
  do {
    std::vector<index> medoids;
    for (index j = 0; j < m; ++j) {
      if (pick[j]) medoids.push_back(j);
    }
    least = std::min(least, cost(problem, medoids));
  } while (std::prev_permutation(pick.begin(), pick.end()));
  return least;
}

}  // namespace pyfast::naive
