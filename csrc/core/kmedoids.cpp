#include "core/kmedoids.hpp"

#include <algorithm>
#include <memory>
#include <numeric>

#include "core/kmedoids_state.hpp"
#include "core/pairwise.hpp"
#include "core/point_distances.hpp"
#include "core/small_search.hpp"
#include "core/subsets.hpp"

namespace pyfast {

namespace {

// One candidate's cost as the only medoid.
template <class T>
double single_cost(const KMedoidsProblem<T>& problem, index j) {
  double cost = 0;
  for (index i = 0; i < problem.points(); ++i) {
    cost += problem.weights[i] * static_cast<double>(problem.distances.row(j)[i]);
  }
  return cost;
}

// With k = 1 there is no second nearest medoid, and one look at every candidate is the optimum.
template <class T>
KMedoidsSolution single_medoid(const KMedoidsProblem<T>& problem, index start, Token& token) {
  index best = start;
  double best_cost = single_cost(problem, start);
  const double enough = kImprovement * best_cost;
  for (index j = 0; j < problem.candidates(); ++j) {
    token.spend(problem.points());
    const double cost = single_cost(problem, j);
    if (cost < best_cost && (best != start || best_cost - cost > enough)) {
      best = j;
      best_cost = cost;
    }
  }
  return {{best}, best_cost, best == start ? 0 : 1, 1};
}

struct Team {
  int threads;
  Cancel& cancel;
};

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
        promising[c] = !state.is_medoid(in + c) && state.may_improve(in + c, scans[worker]);
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
bool is_small(const KMedoidsProblem<T>& problem) {
  return problem.points() <= kSmall && problem.k > 1;
}

template <class T>
bool is_large(const KMedoidsProblem<T>& problem) {
  return problem.candidates() * problem.points() >= DistanceCodes<T>::kWorthwhile;
}

// The problem in double, laid out as SmallSearch reads it.
template <class T>
class SmallProblem {
 public:
  explicit SmallProblem(const KMedoidsProblem<T>& problem)
      : stride_(SmallSearch<double>::padded(problem.points())),
        weights_(static_cast<std::size_t>(stride_), 0.0),
        by_point_(static_cast<std::size_t>(stride_ * stride_), 0.0),
        by_candidate_(by_point_) {
    std::copy(problem.weights, problem.weights + problem.points(), weights_.begin());
    for (index j = 0; j < problem.candidates(); ++j) {
      const T* row = problem.distances.row(j);
      for (index i = 0; i < problem.points(); ++i) {
        by_point_[i * stride_ + j] = by_candidate_[j * stride_ + i] = static_cast<double>(row[i]);
      }
    }
    search_.set_problem(by_point_.data(), by_candidate_.data(), stride_, weights_.data(),
                        problem.points(), problem.candidates(), problem.k);
  }

  SmallSearch<double>& search() { return search_; }

 private:
  index stride_;
  std::vector<double> weights_, by_point_, by_candidate_;
  SmallSearch<double> search_;
};

KMedoidsSolution solution_of(const SmallSearch<double>& search) {
  KMedoidsSolution solution{search.medoids(), search.cost(), search.swaps(), search.passes()};
  std::sort(solution.medoids.begin(), solution.medoids.end());
  return solution;
}

template <class T>
void finish(const State<T>& state, KMedoidsSolution& solution) {
  solution.cost = state.cost();
  solution.medoids = state.medoids();
  std::sort(solution.medoids.begin(), solution.medoids.end());
}

// All at once and not when rows are first looked at: most of those looks come between two swaps,
// where one thread is alone.
template <class T>
void encode_matrix(MatrixView<T> distances, DistanceCodes<T>& codes, Team team, Token& caller) {
  constexpr index kRows = 32;
  const auto encode = [&](index piece, int, Token& token) {
    for (index j = piece * kRows; j < std::min((piece + 1) * kRows, distances.rows); ++j) {
      token.spend(distances.cols);
      codes.add(j, 0, distances.cols, distances.row(j));
    }
  };
  const index pieces = (distances.rows + kRows - 1) / kRows;
  if (team.threads > 1) {
    parallel_for(pieces, team.threads, team.cancel, encode);
  } else {
    for (index piece = 0; piece < pieces; ++piece) encode(piece, 0, caller);
  }
}

// With codes that a search over the same distances made, or none.
template <class T>
KMedoidsSolution search_from(const KMedoidsProblem<T>& problem, std::vector<index> start,
                             Search search, Team team, Token& token,
                             std::unique_ptr<DistanceCodes<T>>& codes) {
  token.spend(problem.points() * problem.k);
  std::vector<const T*> rows;
  for (const index j : start) rows.push_back(problem.distances.row(j));
  State<T> state(problem, std::move(start), rows, token);
  KMedoidsSolution solution;
  if (problem.k < problem.candidates()) {
    if (search == Search::best) {
      search_best(state, problem, token, solution);
    } else {
      if (is_large(problem)) {
        if (!codes) {
          codes = std::make_unique<DistanceCodes<T>>(problem.candidates(), state.seconds());
          encode_matrix(problem.distances, *codes, team, token);
        }
        state.look_in(codes.get(), nullptr);
      }
      search_eager(state, problem, team, token, solution);
    }
  }
  finish(state, solution);
  return solution;
}

// Eager swaps of the points x from one of several starts, which share the codes.
template <class T>
KMedoidsSolution search_points(MatrixView<T> x, const index* names, const double* weights,
                               std::vector<index> start, Team team, Token& token,
                               std::unique_ptr<DistanceCodes<T>>& codes) {
  const index n = x.rows, k = static_cast<index>(start.size());
  const KMedoidsProblem<T> problem{{nullptr, n, n}, weights, k};
  BigArray<T> rows = big_array<T>(k * n);
  distance_rows(x, start, rows.get(), team.threads, team.cancel, token, names);
  std::vector<const T*> row_of;
  for (index s = 0; s < k; ++s) row_of.push_back(rows.get() + s * n);
  State<T> state(problem, std::move(start), row_of, token);
  rows.reset();
  if (!codes) {
    codes = std::make_unique<DistanceCodes<T>>(n, state.seconds());
    const auto encode = [&](index i, index j, index count, const T* d) {
      codes->add(i, j, count, d);
    };
    each_distance<T>(x, encode, team.threads, team.cancel, token, names);
  }
  const PointDistances<T> points(x);
  state.look_in(codes.get(), &points);
  KMedoidsSolution solution;
  search_eager(state, problem, team, token, solution);
  finish(state, solution);
  return solution;
}

// A start that needs no distances.
std::vector<index> plain_start(const KMedoidsOptions& options, index n, index k, index run) {
  if (run == 0 && options.init == KMedoidsOptions::Init::given) {
    return {options.given, options.given + k};
  }
  return random_subset(n, k, options.seed, static_cast<std::uint32_t>(run));
}

}  // namespace

template <class T>
KMedoidsSolution swap_search(const KMedoidsProblem<T>& problem, std::vector<index> start,
                             Search search, int threads, Cancel& cancel, Token& token) {
  if (problem.k == 1) return single_medoid(problem, start[0], token);
  if (is_small(problem)) {
    SmallProblem<T> small(problem);
    small.search().run(start.data(), search, kImprovement, token);
    return solution_of(small.search());
  }
  std::unique_ptr<DistanceCodes<T>> codes;
  return search_from(problem, std::move(start), search, Team{threads, cancel}, token, codes);
}

template <class T>
std::vector<index> greedy_start(const KMedoidsProblem<T>& problem, Token& token) {
  const index n = problem.points();
  std::vector<index> chosen;
  std::vector<char> taken(static_cast<std::size_t>(problem.candidates()), 0);
  std::vector<double> nearest(static_cast<std::size_t>(n), kInfinity);
  while (static_cast<index>(chosen.size()) < problem.k) {
    index best = -1;
    double best_cost = kInfinity;
    for (index j = 0; j < problem.candidates(); ++j) {
      if (taken[j]) continue;
      token.spend(n);
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

template <class T>
KMedoidsSolution kmedoids(const KMedoidsProblem<T>& problem, const KMedoidsOptions& options,
                          int threads, Cancel& cancel, Token& token) {
  const auto start_of = [&](index run, Token& t) -> std::vector<index> {
    if (run == 0 && options.init == KMedoidsOptions::Init::greedy) return greedy_start(problem, t);
    return plain_start(options, problem.candidates(), problem.k, run);
  };
  if (is_small(problem)) {
    SmallProblem<T> copy(problem);
    SmallSearch<double>& small = copy.search();
    KMedoidsSolution best;
    for (index run = 0; run < options.n_init; ++run) {
      small.run(start_of(run, token).data(), options.search, kImprovement, token);
      if (run == 0 || small.cost() < best.cost) best = solution_of(small);
    }
    return best;
  }
  const auto pairs = static_cast<double>(problem.candidates() * problem.points());
  threads = worthwhile_threads(threads, pairs * static_cast<double>(options.n_init));
  std::vector<KMedoidsSolution> runs(static_cast<std::size_t>(options.n_init));
  if (problem.k > 1 && is_large(problem)) {  // one after another: they share the codes
    std::unique_ptr<DistanceCodes<T>> codes;
    for (index run = 0; run < options.n_init; ++run) {
      runs[run] = search_from(problem, start_of(run, token), options.search, Team{threads, cancel},
                              token, codes);
    }
  } else {
    const auto solve = [&](index run, int inner, Token& t) {
      runs[run] = swap_search(problem, start_of(run, t), options.search, inner, cancel, t);
    };
    if (threads > 1 && options.n_init > 1) {
      parallel_for(options.n_init, threads, cancel,
                   [&](index run, int, Token& t) { solve(run, 1, t); });
    } else {
      for (index run = 0; run < options.n_init; ++run) solve(run, threads, token);
    }
  }
  return *std::min_element(runs.begin(), runs.end(),
                           [](const auto& a, const auto& b) { return a.cost < b.cost; });
}

template <class T>
void assign(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids, Token& token,
            index* labels) {
  const T* row = problem.distances.row(medoids[0]);
  std::vector<T> nearest(row, row + problem.points());
  std::fill(labels, labels + problem.points(), index{0});
  for (std::size_t s = 1; s < medoids.size(); ++s) {
    token.spend(problem.points());
    row = problem.distances.row(medoids[s]);
    for (index i = 0; i < problem.points(); ++i) {
      if (row[i] < nearest[i]) {
        nearest[i] = row[i];
        labels[i] = static_cast<index>(s);
      }
    }
  }
}

template <class T>
KMedoidsSolution kmedoids_of_points(MatrixView<T> x, const double* weights, index k,
                                    const KMedoidsOptions& options, int threads, Cancel& cancel,
                                    Token& token, const index* names, index* labels) {
  const index n = x.rows;
  const bool eager =
      options.search == Search::eager && options.init != KMedoidsOptions::Init::greedy;
  if (!eager || k == 1 || k == n || n * n < DistanceCodes<T>::kWorthwhile) {
    const BigArray<T> distances = big_array<T>(n * n);
    euclidean_distances(x, distances.get(), threads, cancel, token, names);
    const KMedoidsProblem<T> problem{{distances.get(), n, n}, weights, k};
    KMedoidsSolution solution = kmedoids(problem, options, threads, cancel, token);
    if (labels != nullptr) assign(problem, solution.medoids, token, labels);
    return solution;
  }
  KMedoidsSolution best;
  {
    std::unique_ptr<DistanceCodes<T>> codes;
    for (index run = 0; run < options.n_init; ++run) {
      KMedoidsSolution solution = search_points(x, names, weights, plain_start(options, n, k, run),
                                                Team{threads, cancel}, token, codes);
      if (run == 0 || solution.cost < best.cost) best = std::move(solution);
    }
  }
  if (labels != nullptr) {
    const BigArray<T> rows = big_array<T>(k * n);
    distance_rows(x, best.medoids, rows.get(), threads, cancel, token, names);
    std::vector<index> in_order(best.medoids.size());
    std::iota(in_order.begin(), in_order.end(), index{0});
    assign(KMedoidsProblem<T>{{rows.get(), k, n}, weights, k}, in_order, token, labels);
  }
  return best;
}

#define PYFAST_INSTANTIATE(T)                                                                  \
  template KMedoidsSolution swap_search(const KMedoidsProblem<T>&, std::vector<index>, Search, \
                                        int, Cancel&, Token&);                                 \
  template std::vector<index> greedy_start(const KMedoidsProblem<T>&, Token&);                 \
  template KMedoidsSolution kmedoids(const KMedoidsProblem<T>&, const KMedoidsOptions&, int,   \
                                     Cancel&, Token&);                                         \
  template void assign(const KMedoidsProblem<T>&, const std::vector<index>&, Token&, index*);  \
  template KMedoidsSolution kmedoids_of_points(MatrixView<T>, const double*, index,            \
                                               const KMedoidsOptions&, int, Cancel&, Token&,   \
                                               const index*, index*);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
