#include "core/kmedoids/kmedoids.hpp"

#include <algorithm>
#include <memory>

#include "core/distance/exact.hpp"
#include "core/kmedoids/fasterpam.hpp"
#include "core/kmedoids/small.hpp"

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

template <class T>
bool is_small(const KMedoidsProblem<T>& problem) {
  return problem.points() <= kSmall && problem.k > 1;
}

template <class T>
bool is_large(const KMedoidsProblem<T>& problem) {
  return problem.candidates() * problem.points() >= ByteBounds<T>::kWorthwhile;
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

// All at once and not when rows are first looked at: most of those looks come between two swaps,
// where one thread is alone.
template <class T>
void encode_matrix(MatrixView<T> distances, ByteBounds<T>& codes, Team team, Token& caller) {
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
                             std::unique_ptr<ByteBounds<T>>& codes) {
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
          codes = std::make_unique<ByteBounds<T>>(problem.candidates(), state.seconds());
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
  std::unique_ptr<ByteBounds<T>> codes;
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
    return plain_start(options, problem.candidates(), problem.k, run, t);
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
    std::unique_ptr<ByteBounds<T>> codes;
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
void assign_nearest(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids,
                    Token& token, index* labels) {
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
void assign(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids, Token& token,
            index* labels) {
  assign_nearest(problem, medoids, token, labels);
  label_medoids(medoids, labels);
}

#define PYFAST_INSTANTIATE(T)                                                                  \
  template KMedoidsSolution swap_search(const KMedoidsProblem<T>&, std::vector<index>, Search, \
                                        int, Cancel&, Token&);                                 \
  template std::vector<index> greedy_start(const KMedoidsProblem<T>&, Token&);                 \
  template KMedoidsSolution kmedoids(const KMedoidsProblem<T>&, const KMedoidsOptions&, int,   \
                                     Cancel&, Token&);                                         \
  template void assign(const KMedoidsProblem<T>&, const std::vector<index>&, Token&, index*);  \
  template void assign_nearest(const KMedoidsProblem<T>&, const std::vector<index>&, Token&,   \
                               index*);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
