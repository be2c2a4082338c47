// k-medoids of points: with a matrix of their distances, or with codes and no matrix.
#include <memory>
#include <numeric>

#include "core/distance/euclidean.hpp"
#include "core/distance/point_distances.hpp"
#include "core/kmedoids/fasterpam.hpp"
#include "core/run/memory.hpp"

namespace pyfast {

namespace {

// Eager swaps of the points x from one of several starts, which share the codes.
template <class T>
KMedoidsSolution search_points(MatrixView<T> x, const index* names, const double* weights,
                               std::vector<index> start, Team team, Token& token,
                               std::unique_ptr<ByteBounds<T>>& codes) {
  const index n = x.rows, k = static_cast<index>(start.size());
  const KMedoidsProblem<T> problem{{nullptr, n, n}, weights, k};
  BigArray<T> rows = big_array<T>(k * n);
  distance_rows(x, start, rows.get(), team.threads, team.cancel, token, names);
  std::vector<const T*> row_of;
  for (index s = 0; s < k; ++s) row_of.push_back(rows.get() + s * n);
  State<T> state(problem, std::move(start), row_of, token);
  rows.reset();
  if (!codes) {
    codes = std::make_unique<ByteBounds<T>>(n, state.seconds());
    const auto encode = [&](index i, index j, index count, const T* d) {
      codes->add(i, j, count, d);
    };
    each_bound<T>(x, encode, team.threads, team.cancel, token, names);
  }
  const PointDistances<T> points(x);
  state.look_in(codes.get(), &points);
  KMedoidsSolution solution;
  search_eager(state, problem, team, token, solution);
  finish(state, solution);
  return solution;
}

}  // namespace

template <class T>
KMedoidsSolution kmedoids_of_points(MatrixView<T> x, const double* weights, index k,
                                    const KMedoidsOptions& options, int threads, Cancel& cancel,
                                    Token& token, const index* names, index* labels) {
  const index n = x.rows;
  const bool eager =
      options.search == Search::eager && options.init != KMedoidsOptions::Init::greedy;
  if (!eager || k == 1 || k == n || n * n < ByteBounds<T>::kWorthwhile) {
    const BigArray<T> distances = big_array<T>(n * n);
    euclidean_distances(x, distances.get(), threads, cancel, token, names);
    const KMedoidsProblem<T> problem{{distances.get(), n, n}, weights, k};
    KMedoidsSolution solution = kmedoids(problem, options, threads, cancel, token);
    if (labels != nullptr) assign(problem, solution.medoids, token, labels);
    return solution;
  }
  KMedoidsSolution best;
  {
    std::unique_ptr<ByteBounds<T>> codes;
    for (index run = 0; run < options.n_init; ++run) {
      KMedoidsSolution solution =
          search_points(x, names, weights, plain_start(options, n, k, run, token),
                        Team{threads, cancel}, token, codes);
      if (run == 0 || solution.cost < best.cost) best = std::move(solution);
    }
  }
  if (labels != nullptr) {
    const BigArray<T> rows = big_array<T>(k * n);
    distance_rows(x, best.medoids, rows.get(), threads, cancel, token, names);
    std::vector<index> in_order(best.medoids.size());
    std::iota(in_order.begin(), in_order.end(), index{0});
    assign_nearest(KMedoidsProblem<T>{{rows.get(), k, n}, weights, k}, in_order, token, labels);
    label_medoids(best.medoids, labels);
  }
  return best;
}

#define PYFAST_INSTANTIATE(T)                                                                \
  template KMedoidsSolution kmedoids_of_points(MatrixView<T>, const double*, index,          \
                                               const KMedoidsOptions&, int, Cancel&, Token&, \
                                               const index*, index*);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
