// The swap searches of k-medoids, over whatever distances their State has.
#pragma once

#include <algorithm>
#include <vector>

#include "core/kmedoids/state.hpp"
#include "core/run/random.hpp"

namespace pyfast {

struct Team {
  int threads;
  Cancel& cancel;
};

// A start that needs no distances.
inline std::vector<index> plain_start(const KMedoidsOptions& options, index n, index k, index run,
                                      Token& token) {
  if (run == 0 && options.init == KMedoidsOptions::Init::given) {
    return {options.given, options.given + k};
  }
  return random_subset(n, k, options.seed, static_cast<std::uint32_t>(run), token);
}

// Appendix E looks at outgoing medoids in ascending order and, for each, at incoming candidates in
// ascending order; the first of equally good swaps wins.
template <class T>
Swap best_swap(State<T>& state, const KMedoidsProblem<T>& problem, Token& token) {
  Swap best;
  double best_cost = state.cost();
  const auto earlier = [&](std::int32_t slot, index in) {
    const index out = state.medoids()[slot], best_out = state.medoids()[best.slot];
    return out < best_out || (out == best_out && in < best.in);
  };
  for (index in = 0; in < problem.candidates(); ++in) {
    if (state.is_medoid(in)) continue;
    token.spend(problem.points());
    const std::vector<double>& costs = state.costs_with(in);
    for (std::int32_t slot = 0; slot < problem.k; ++slot) {
      const double cost = costs[slot];
      if (cost < best_cost || (cost == best_cost && best.slot >= 0 && earlier(slot, in))) {
        best = {slot, in};
        best_cost = cost;
      }
    }
  }
  return state.improves(best_cost) ? best : Swap{};
}

template <class T>
void search_best(State<T>& state, const KMedoidsProblem<T>& problem, Token& token,
                 KMedoidsSolution& tally) {
  for (;;) {
    ++tally.passes;
    const Swap swap = best_swap(state, problem, token);
    if (swap.slot < 0) return;
    ++tally.swaps;
    if (!state.apply(swap)) return;
  }
}

// Candidates in turn, round and round, until none of them has found a swap since the last one.
// A block of them is looked through at once, by all threads; the answers hold until the next swap,
// so that the swaps do not depend on the threads. Blocks grow while nothing is found.
template <class T>
void search_eager(State<T>& state, const KMedoidsProblem<T>& problem, Team& team, Token& token,
                  KMedoidsSolution& tally) {
  constexpr index kPiece = 32, kLargest = 128 * kPiece;
  constexpr index kWorthThreads = 16'000'000;  // distances to look at: a millisecond
  const index m = problem.candidates();
  std::vector<typename State<T>::Scan> scans(static_cast<std::size_t>(team.threads),
                                             state.new_scan());
  std::vector<char> promising(static_cast<std::size_t>(std::min(m, kLargest)));
  index looked_at = 0, in = 0, unchanged = 0, block = kPiece;
  while (unchanged < m) {
    const index count = std::min({block, m - in, m - unchanged});
    const auto look = [&](index piece, int worker, Token& own) {
      for (index c = piece * kPiece; c < std::min((piece + 1) * kPiece, count); ++c) {
        own.spend(problem.points());
        promising[c] = !state.is_medoid(in + c) && state.may_improve(in + c, scans[worker], own);
      }
    };
    const index pieces = (count + kPiece - 1) / kPiece;
    if (team.threads > 1 && count * problem.points() > kWorthThreads) {
      parallel_for(pieces, team.threads, team.cancel, look);
    } else {
      for (index piece = 0; piece < pieces; ++piece) look(piece, 0, token);
    }
    block = std::min(2 * block, kLargest);
    index seen = 0;
    for (bool swapped = false; seen < count && !swapped; ++seen) {
      if (promising[seen] == 0) continue;
      token.spend(problem.points());
      const std::vector<double>& costs = state.costs_with(in + seen);
      const auto least = std::min_element(costs.begin(), costs.end());
      if (!state.improves(*least)) continue;
      ++tally.swaps;
      if (!state.apply({static_cast<std::int32_t>(least - costs.begin()), in + seen})) return;
      swapped = true;
      unchanged = -seen;
      block = kPiece;
    }
    unchanged += seen;
    looked_at += seen;
    in = in + seen < m ? in + seen : 0;
  }
  tally.passes = (looked_at + m - 1) / m;
}

template <class T>
void finish(const State<T>& state, KMedoidsSolution& solution) {
  solution.cost = state.cost();
  solution.medoids = state.medoids();
  std::sort(solution.medoids.begin(), solution.medoids.end());
}

}  // namespace pyfast
