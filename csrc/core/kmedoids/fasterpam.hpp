// FasterPAM over whatever distances the State has.
#pragma once

#include <algorithm>
#include <vector>

#include "core/kmedoids/state.hpp"

namespace pyfast {

// A block of candidates is looked through at once, by all threads; the answers hold until the next
// swap, so that the swaps do not depend on the threads. Blocks grow while nothing is found.
template <class T>
void search_eager(State<T>& state, const KMedoidsProblem<T>& problem, Work& work,
                  KMedoidsSolution& tally) {
  constexpr index kPiece = 32, kLargest = 128 * kPiece;
  const index m = problem.candidates();
  std::vector<typename State<T>::Scan> scans(static_cast<std::size_t>(work.threads()),
                                             state.new_scan());
  std::vector<char> promising(static_cast<std::size_t>(std::min(m, kLargest)));
  Turns turns(m);
  index block = kPiece;
  while (turns.left()) {
    const index in = turns.next(), count = std::min(block, turns.at_once());
    const auto look = [&](index piece, int worker, Work& own) {
      for (index c = piece * kPiece; c < std::min((piece + 1) * kPiece, count); ++c) {
        own.spend(problem.points());
        promising[c] = !state.is_medoid(in + c) && state.may_improve(in + c, scans[worker], own);
      }
    };
    work.each((count + kPiece - 1) / kPiece, static_cast<double>(count * problem.points()) / 16,
              look);
    block = std::min(2 * block, kLargest);
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
      block = kPiece;
    }
    turns.looked_at(seen, swapped);
  }
  tally.passes = turns.passes();
}

}  // namespace pyfast
