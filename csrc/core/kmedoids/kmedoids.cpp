#include "core/kmedoids/kmedoids.hpp"

#include <algorithm>
#include <memory>
#include <numeric>

#include "core/distance/byte_bounds.hpp"
#include "core/distance/check.hpp"
#include "core/distance/euclidean.hpp"
#include "core/distance/exact.hpp"
#include "core/distance/point_distances.hpp"
#include "core/kmedoids/assign.hpp"
#include "core/kmedoids/best_swap.hpp"
#include "core/kmedoids/build.hpp"
#include "core/kmedoids/fasterpam.hpp"
#include "core/kmedoids/sampled.hpp"
#include "core/kmedoids/small.hpp"
#include "core/run/memory.hpp"
#include "core/run/starts.hpp"

namespace pyfast {

const char* name_of(Way way) {
  constexpr const char* kNames[] = {"single", "small", "matrix", "bytes", "measured", "sampled"};
  return kNames[static_cast<int>(way)];
}

// Pairs from which on their distances do not stay in cache, where reading a quarter helps.
constexpr index kBytesFrom = 1'000'000;

Way plan(const Shape& shape, const KMedoidsOptions& options) {
  const auto [m, n, k, distances] = shape;
  const bool few = n <= kSmall;
  if (!distances && !few && options.sampled_above > 0 && n > options.sampled_above) {
    return Way::sampled;
  }
  if (k == 1) return Way::single;
  if (few) return Way::small;
  if (options.search != Search::eager || k == m || m * n < kBytesFrom) return Way::matrix;
  return distances || options.init == KMedoidsOptions::Init::greedy ? Way::bytes : Way::measured;
}

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
KMedoidsSolution single_medoid(const KMedoidsProblem<T>& problem, index start, Work& work) {
  index best = start;
  double best_cost = single_cost(problem, start);
  const double enough = kImprovement * best_cost;
  for (index j = 0; j < problem.candidates(); ++j) {
    work.spend(problem.points());
    const double cost = single_cost(problem, j);
    if (cost < best_cost && (best != start || best_cost - cost > enough)) {
      best = j;
      best_cost = cost;
    }
  }
  return {{best}, best_cost, best == start ? 0 : 1, 1};
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

// Of each point, the second least of its distances to some candidates.
template <class T>
std::vector<T> seconds_of(MatrixView<T> distances, const std::vector<index>& candidates,
                          Work& work) {
  std::vector<T> first(static_cast<std::size_t>(distances.cols),
                       std::numeric_limits<T>::infinity());
  std::vector<T> second(first);
  for (const index j : candidates) {
    work.spend(distances.cols);
    const T* row = distances.row(j);
    for (std::size_t i = 0; i < first.size(); ++i) {
      second[i] = std::min(second[i], std::max(first[i], row[i]));
      first[i] = std::min(first[i], row[i]);
    }
  }
  return second;
}

// All at once and not when rows are first looked at: most of those looks come between two swaps,
// where one thread is alone.
template <class T>
std::unique_ptr<ByteBounds<T>> bounds_of(MatrixView<T> distances, const std::vector<T>& seconds,
                                         Work& work) {
  constexpr index kRows = 32;
  auto bounds = std::make_unique<ByteBounds<T>>(distances.rows, seconds);
  work.each(
      (distances.rows + kRows - 1) / kRows,
      static_cast<double>(distances.rows * distances.cols) / 16, [&](index piece, int, Work& own) {
        for (index j = piece * kRows; j < std::min((piece + 1) * kRows, distances.rows); ++j) {
          own.spend(distances.cols);
          bounds->add(j, 0, distances.cols, distances.row(j));
        }
      });
  return bounds;
}

template <class T>
KMedoidsSolution finish(const State<T>& state, KMedoidsSolution& tally) {
  tally.cost = state.cost();
  tally.medoids = state.medoids();
  std::sort(tally.medoids.begin(), tally.medoids.end());
  return std::move(tally);
}

// One start. The bounds are made by the first one that needs them, for all.
template <class T>
KMedoidsSolution search_matrix(const KMedoidsProblem<T>& problem, std::vector<index> start,
                               Search search, Way way, std::unique_ptr<ByteBounds<T>>& bounds,
                               Work& work) {
  work.spend(problem.points() * problem.k);
  std::vector<const T*> rows;
  for (const index j : start) rows.push_back(problem.distances.row(j));
  State<T> state(problem, std::move(start), rows, work);
  KMedoidsSolution tally;
  if (problem.k < problem.candidates()) {
    if (search == Search::best) {
      search_best(state, problem, work, tally);
    } else {
      if (way == Way::bytes) {
        const bool given = problem.bounds != nullptr;
        if (!given && !bounds) bounds = bounds_of(problem.distances, state.seconds(), work);
        state.look_in(given ? problem.bounds : bounds.get(), nullptr);
      }
      search_eager(state, problem, work, tally);
    }
  }
  return finish(state, tally);
}

// The same without a matrix.
template <class T>
KMedoidsSolution search_measured(const KMedoidsPoints<T>& points, std::vector<index> start,
                                 std::unique_ptr<ByteBounds<T>>& bounds, Work& work) {
  const index n = points.x.rows, k = points.k;
  const KMedoidsProblem<T> problem{{nullptr, n, n}, points.weights, k};
  BigArray<T> rows = big_array<T>(k * n);
  distance_rows(points.x, start, rows.get(), work, points.names);
  std::vector<const T*> row_of;
  for (index s = 0; s < k; ++s) row_of.push_back(rows.get() + s * n);
  State<T> state(problem, std::move(start), row_of, work);
  rows.reset();
  if (!bounds) {
    bounds = std::make_unique<ByteBounds<T>>(n, state.seconds());
    const auto add = [&](const simd::DistanceTile<T>& tile) { bounds->add(tile); };
    each_bound<T>(points.x, add, work, points.names);
  }
  const PointDistances<T> measure(points.x);
  state.look_in(bounds.get(), &measure);
  KMedoidsSolution tally;
  search_eager(state, problem, work, tally);
  return finish(state, tally);
}

double cost_of(const KMedoidsSolution& solution) { return solution.cost; }

template <class T>
KMedoidsSolution solve_measured(const KMedoidsPoints<T>& points, const KMedoidsOptions& options,
                                Work& work, index* labels) {
  const index n = points.x.rows, k = points.k;
  KMedoidsSolution best;
  {
    std::unique_ptr<ByteBounds<T>> bounds;
    best = best_of(options.n_init, cost_of, [&](index run) {
      return search_measured(points, plain_start(options, n, k, run, work), bounds, work);
    });
  }
  if (labels != nullptr) {
    const BigArray<T> rows = big_array<T>(k * n);
    distance_rows(points.x, best.medoids, rows.get(), work, points.names);
    std::vector<index> in_order(best.medoids.size());
    std::iota(in_order.begin(), in_order.end(), index{0});
    assign_nearest(KMedoidsProblem<T>{{rows.get(), k, n}, points.weights, k}, in_order, work,
                   labels);
    label_medoids(best.medoids, labels);
  }
  return best;
}

// On a matrix of any type: the starts, by the way planned.
template <class T>
KMedoidsSolution search_starts(const KMedoidsProblem<T>& problem, const KMedoidsOptions& options,
                               Way way, Work& work) {
  const auto start = [&](index run, Work& own) { return start_of(run, problem, options, own); };
  if (way == Way::small) {
    SmallProblem<T> copy(problem);
    return best_of(options.n_init, cost_of, [&](index run) {
      copy.search().run(start(run, work).data(), options.search, kImprovement, work);
      return solution_of(copy.search());
    });
  }
  if (way == Way::bytes) {  // one after another: they share the bounds
    std::unique_ptr<ByteBounds<T>> bounds;
    return best_of(options.n_init, cost_of, [&](index run) {
      return search_matrix(problem, start(run, work), options.search, way, bounds, work);
    });
  }
  const auto pairs = static_cast<double>(problem.candidates() * problem.points());
  std::vector<KMedoidsSolution> runs(static_cast<std::size_t>(options.n_init));
  work.each(
      options.n_init, pairs * static_cast<double>(options.n_init), [&](index run, int, Work& own) {
        std::unique_ptr<ByteBounds<T>> none;
        runs[run] = way == Way::single
                        ? single_medoid(problem, start(run, own)[0], own)
                        : search_matrix(problem, start(run, own), options.search, way, none, own);
      });
  return best_of(options.n_init, cost_of, [&](index run) { return std::move(runs[run]); });
}

}  // namespace

template <class T>
bool check_distances(MatrixView<T> distances, index k, const KMedoidsOptions& options, Work& work,
                     std::unique_ptr<ByteBounds<T>>& bounds) {
  const index n = distances.rows;
  if (plan({n, n, k, true}, options) == Way::bytes) {
    const std::vector<index> some = plain_start(options, n, k, 0, work);
    bounds = std::make_unique<ByteBounds<T>>(n, seconds_of(distances, some, work));
  }
  return surely_distances(distances.data, n, work, bounds.get());
}

template <class T>
KMedoidsSolution solve(const KMedoidsProblem<T>& problem, const KMedoidsOptions& options,
                       Work& work, index* labels) {
  const Way way = plan({problem.candidates(), problem.points(), problem.k, true}, options);
  KMedoidsSolution solution = search_starts(problem, options, way, work);
  if (labels != nullptr) assign(problem, solution.medoids, work, labels);
  return solution;
}

template <class T>
KMedoidsSolution solve(const KMedoidsPoints<T>& points, const KMedoidsOptions& options, Work& work,
                       index* labels) {
  const index n = points.x.rows;
  const Way way = plan({n, n, points.k, false}, options);
  if (way == Way::sampled) return sampled_kmedoids(points, options, work, labels);
  if (way == Way::measured) return solve_measured(points, options, work, labels);
  const BigArray<T> distances = big_array<T>(n * n);
  euclidean_distances(points.x, distances.get(), work, points.names);
  return solve(KMedoidsProblem<T>{{distances.get(), n, n}, points.weights, points.k}, options, work,
               labels);
}

#define PYFAST_INSTANTIATE(T)                                                               \
  template bool check_distances(MatrixView<T>, index, const KMedoidsOptions&, Work&,        \
                                std::unique_ptr<ByteBounds<T>>&);                           \
  template KMedoidsSolution solve(const KMedoidsProblem<T>&, const KMedoidsOptions&, Work&, \
                                  index*);                                                  \
  template KMedoidsSolution solve(const KMedoidsPoints<T>&, const KMedoidsOptions&, Work&, index*);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
