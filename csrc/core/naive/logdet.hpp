// Textbook greedy log-det for core_tests alone: H^{-1} as a d x d matrix. Never optimised.
#pragma once

#include <vector>

#include "core/run/views.hpp"

namespace pyfast::naive {

struct LogDetPicks {
  std::vector<index> picks;
  std::vector<double> gains;
  double logdet = 0;
};

// Sherman-Morrison; candidates within kLogDetTie of the largest tie, the lowest index wins.
LogDetPicks logdet(MatrixView<double> v, index k, double gamma, double scale);

}  // namespace pyfast::naive
