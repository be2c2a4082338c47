// FasterPAM over whatever distances the State has.
#pragma once

#include <algorithm>
#include <vector>

#include "core/kmedoids/state.hpp"

namespace pyfast {

// Candidates are looked at one by one until so many in a row have found nothing that as many more
// are worth several threads. Answers hold until the next swap, which makes those after it useless;
// so the swaps do not depend on the threads.
template <class T>
void search_eager(State<T>& state, const KMedoidsProblem<T>& problem, Work& work,
                  KMedoidsSolution& tally) {
  constexpr index kPiece = 32, kLargest = 128 * kPiece;
  const index m = problem.candidates();
  std::vector<typename State<T>::Scan> scans(static_cast<std::size_t>(work.threads()),
                                             state.new_scan());
  std::vector<char> promising(static_cast<std::size_t>(std::min(m, kLargest)));
  Turns turns(m);
  const auto operations = [&](index count) {
    return static_cast<double>(count * problem.points()) / 16;
  };
  while (turns.left()) {
    const index in = turns.next();
    const index block = std::min({turns.since_swap(), turns.at_once(), kLargest});
    const index count = work.worth(operations(block)) > 1 ? block : 1;
    const auto look = [&](index piece, int worker, Work& own) {
      for (index c = piece * kPiece; c < std::min((piece + 1) * kPiece, count); ++c) {
        own.spend(problem.points());
        promising[c] =
            !state.is_medoid(in + c) && state.bounds_leave_open(in + c, scans[worker], own);
      }
    };
    work.each((count + kPiece - 1) / kPiece, operations(count), look);
    index seen = 0;
    bool swapped = false;
    for (; seen < count && !swapped; ++seen) {
      if (promising[seen] == 0) continue;
      work.spend(problem.points());
      const std::vector<double>& costs = state.costs_with(in + seen);
      const auto least = std::min_element(costs.begin(), costs.end());
      if (!state.improves(*least)) continue;
      ++tally.swaps;
      if (!state.apply({static_cast<std::int32_t>(least - costs.begin()), in + seen})) return;
      swapped = true;
    }
    turns.looked_at(seen, swapped);
  }
  tally.passes = turns.passes();
}

}  // namespace pyfast
