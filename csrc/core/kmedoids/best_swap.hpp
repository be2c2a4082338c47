// AMPO's Algorithm 4 and Appendix E: the best of all swaps each time.
#pragma once

#include <vector>

#include "core/kmedoids/state.hpp"

namespace pyfast {

template <class T>
Swap best_swap(State<T>& state, const KMedoidsProblem<T>& problem, Work& work) {
  Swap best;
  double best_cost = state.cost();
  for (index in = 0; in < problem.candidates(); ++in) {
    if (state.is_medoid(in)) continue;
    work.spend(problem.points());
    const std::vector<double>& costs = state.costs_with(in);
    for (std::int32_t slot = 0; slot < problem.k; ++slot) {
      const double cost = costs[slot];
      if (cost < best_cost ||
          (cost == best_cost && best.slot >= 0 && earlier(state.medoids(), {slot, in}, best))) {
        best = {slot, in};
        best_cost = cost;
      }
    }
  }
  return state.improves(best_cost) ? best : Swap{};
}

template <class T>
void search_best(State<T>& state, const KMedoidsProblem<T>& problem, Work& work,
                 KMedoidsSolution& tally) {
  for (;;) {
    ++tally.passes;
    const Swap swap = best_swap(state, problem, work);
    if (swap.slot < 0) return;
    ++tally.swaps;
    if (!state.apply(swap)) return;
  }
}

}  // namespace pyfast
