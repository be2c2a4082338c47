// Every point to its nearest medoid.
#pragma once

#include <algorithm>
#include <vector>

#include "core/kmedoids/problem.hpp"
#include "core/run/work.hpp"

namespace pyfast {

// labels[i] = position in `medoids` of the nearest candidate there (lowest of equals).
template <class T>
void assign_nearest(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids,
                    Work& work, index* labels) {
  const T* row = problem.distances.row(medoids[0]);
  std::vector<T> nearest(row, row + problem.points());
  std::fill(labels, labels + problem.points(), index{0});
  for (std::size_t s = 1; s < medoids.size(); ++s) {
    work.spend(problem.points());
    row = problem.distances.row(medoids[s]);
    for (index i = 0; i < problem.points(); ++i) {
      if (row[i] < nearest[i]) {
        nearest[i] = row[i];
        labels[i] = static_cast<index>(s);
      }
    }
  }
}

// A medoid that lies on another one still belongs to its own cluster, so that none is empty.
inline void label_medoids(const std::vector<index>& medoids, index* labels) {
  for (std::size_t s = 0; s < medoids.size(); ++s) labels[medoids[s]] = static_cast<index>(s);
}

template <class T>
void assign(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids, Work& work,
            index* labels) {
  assign_nearest(problem, medoids, work, labels);
  label_medoids(medoids, labels);
}

}  // namespace pyfast
