#include <algorithm>

#include "bind/args.hpp"
#include "bind/problems.hpp"
#include "core/kmedoids/kmedoids.hpp"
#include "core/kmedoids/sampled.hpp"
#include "core/kmedoids/small.hpp"

namespace pyfast::bind {

namespace {

using Init = KMedoidsOptions::Init;

struct Outputs {
  py::array_t<index> medoids, labels, swaps, passes;
  py::array_t<double> cost;
};

// What is asked of every group.
struct Request {
  index k;
  const double* weights;
  KMedoidsOptions options;
  index sample_size, sampled_above;  // groups of more points than that are sampled
  int threads;
};

// One task per group; a single group has all threads for itself. solve(b, options, means, labels)
// returns the solution of one group.
template <class Solve>
void solve_groups(const Groups& groups, const Request& request, Outputs& out, Solve&& solve) {
  index* medoids = out.medoids.mutable_data();
  index* labels = out.labels.mutable_data();
  index* swaps = out.swaps.mutable_data();
  index* passes = out.passes.mutable_data();
  double* cost = out.cost.mutable_data();
  const int inner = groups.count == 1 ? request.threads : 1;
  without_gil([&](Cancel& cancel) {
    parallel_for(groups.count, request.threads, cancel, [&](index b, int, Token& token) {
      KMedoidsOptions own = request.options;
      if (own.given != nullptr) own.given += b * request.k;
      const KMedoidsSolution solution =
          solve(b, own, Means{inner, cancel, token}, labels + groups.begin(b));
      std::copy(solution.medoids.begin(), solution.medoids.end(), medoids + b * request.k);
      cost[b] = solution.cost;
      swaps[b] = solution.swaps;
      passes[b] = solution.passes;
    });
  });
}

template <class T>
KMedoidsSolution solve_problem(const KMedoidsProblem<T>& problem, const Shifts& shifts,
                               const KMedoidsOptions& options, const Means& means, index* labels) {
  KMedoidsSolution solution = kmedoids(problem, options, means.threads, means.cancel, means.token);
  assign(problem, solution.medoids, means.token, labels);
  solution.cost = unscaled(solution.cost, shifts.costs());
  return solution;
}

// Of more points than have their distances in a matrix of double.
template <class T>
KMedoidsSolution solve_many(MatrixView<T> x, const double* weights, const Request& request,
                            const KMedoidsOptions& options, const Means& means, index* labels) {
  const LiftedPoints<T> points(x, means.token);
  const ScaledWeights scaled(weights, x.rows, points.farthest());
  KMedoidsSolution solution =
      x.rows > request.sampled_above
          ? sampled_kmedoids(points.view(), scaled.data(), request.k, request.sample_size, options,
                             means.threads, means.cancel, means.token, labels)
          : kmedoids_of_points(points.view(), scaled.data(), request.k, options, means.threads,
                               means.cancel, means.token, nullptr, labels);
  solution.cost = unscaled(solution.cost, points.shift() + scaled.shift());
  return solution;
}

template <class T>
void from_points(const py::array& data, const Groups& groups, const Request& request,
                 Outputs& out) {
  const T* x = checked<T>(data, "X", 2);
  const index d = data.shape(1), k = request.k;
  solve_groups(groups, request, out,
               [&](index b, const auto& options, const Means& means, index* labels) {
                 const MatrixView<T> own{x + groups.begin(b) * d, groups.size(b), d};
                 const double* weights = request.weights + groups.begin(b);
                 if (own.rows > kSmall) {
                   return solve_many(own, weights, request, options, means, labels);
                 }
                 KMedoidsSolution solution;
                 with_distances(own, weights, k, means, [&](const auto& problem, const Shifts& by) {
                   solution = solve_problem(problem, by, options, means, labels);
                 });
                 return solution;
               });
}

template <class T>
void from_distances(const py::array& data, const Groups& groups, const Request& request,
                    Outputs& out) {
  const T* distances = checked<T>(data, "D", 1);
  const std::vector<index> starts = square_starts(groups, data.shape(0));
  solve_groups(groups, request, out,
               [&](index b, const auto& options, const Means& means, index* labels) {
                 const index n = groups.size(b);
                 KMedoidsSolution solution;
                 with_weights(MatrixView<T>{distances + starts[b], n, n}, 0,
                              request.weights + groups.begin(b), request.k, means.token,
                              [&](const auto& problem, const Shifts& by) {
                                solution = solve_problem(problem, by, options, means, labels);
                              });
                 return solution;
               });
}

// k distinct positions for each group.
const index* checked_starts(const py::array& given, const Groups& groups, index k) {
  const index* starts = checked<index>(given, "init", 1);
  if (given.size() != groups.count * k) throw py::type_error("init: expected groups * k indices");
  for (index b = 0; b < groups.count; ++b) {
    std::vector<index> sorted(starts + b * k, starts + (b + 1) * k);
    std::sort(sorted.begin(), sorted.end());
    if (sorted.front() < 0 || sorted.back() >= groups.size(b) ||
        std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
      throw py::type_error("init: expected distinct positions in their groups");
    }
  }
  return starts;
}

py::tuple kmedoids_groups(const py::array& data, const py::array& offsets, const py::array& weights,
                          index k, bool precomputed, const std::string& search,
                          const std::string& init, const py::array& given, index n_init,
                          std::uint64_t seed, index sample_size, index sampled_above, int threads) {
  const index total = weights.size();
  const Groups groups = checked_groups(offsets, total);
  if (!precomputed && data.ndim() == 2 && data.shape(0) != total) {
    throw py::type_error("X: expected one row per weight");
  }
  check_range(n_init, "n_init", 1, kMostStarts);
  check_range(threads, "threads", 1, kMostThreads);
  check_range(sample_size, "sample_size", 1, index{1} << 31);
  check_range(sampled_above, "sampled_above", sample_size, index{1} << 31);
  for (index b = 0; b < groups.count; ++b) check_range(k, "k", 1, groups.size(b));
  KMedoidsOptions options;
  options.search = search == "best" ? Search::best : Search::eager;
  options.init = init == "given" ? Init::given : init == "greedy" ? Init::greedy : Init::random;
  if (options.init == Init::given) {
    options.given = checked_starts(given, groups, k);
  }
  options.n_init = n_init;
  options.seed = seed;
  const double* w = checked<double>(weights, "weights", 1);
  check_finite(w, total, "weights");
  if (total > 0 && *std::min_element(w, w + total) < 0) {
    throw py::type_error("weights: expected no negative number");
  }

  Outputs out{new_indices(groups.count * k), new_indices(total), new_indices(groups.count),
              new_indices(groups.count), py::array_t<double>(groups.count)};
  const bool single = is_float32(data);
  const auto run = precomputed ? (single ? from_distances<float> : from_distances<double>)
                               : (single ? from_points<float> : from_points<double>);
  run(data, groups, Request{k, w, options, sample_size, sampled_above, threads}, out);
  return py::make_tuple(out.medoids, out.labels, out.cost, out.swaps, out.passes);
}

}  // namespace

void bind_kmedoids(py::module_& m) {
  m.def("kmedoids", &kmedoids_groups, py::arg("data"), py::arg("offsets"), py::arg("weights"),
        py::arg("k"), py::arg("precomputed"), py::arg("search"), py::arg("init"), py::arg("given"),
        py::arg("n_init"), py::arg("seed"), py::arg("sample_size"), py::arg("sampled_above"),
        py::arg("threads"),
        "Ragged groups of points (T, d), those of more than `sampled_above` sampled, or of "
        "distances laid end to end: (medoids (B*k,), labels "
        "(T,), cost (B,), swaps (B,), passes (B,)).");
}

}  // namespace pyfast::bind
