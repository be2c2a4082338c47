// Textbook versions of the searches, for core_tests alone: every swap is priced by summing the
// whole cost again. Never optimised.
#pragma once

#include <vector>

#include "core/kmedoids/kmedoids.hpp"

namespace pyfast::naive {

double cost(const KMedoidsProblem<double>& problem, const std::vector<index>& medoids);

// The sets that AMPO's Appendix E visits from `start`, each ascending; the last one is the result.
std::vector<std::vector<index>> best_trajectory(const KMedoidsProblem<double>& problem,
                                                std::vector<index> start);

// Lowest cost over all subsets of k candidates.
double optimum(const KMedoidsProblem<double>& problem);

}  // namespace pyfast::naive
