#include <algorithm>
#include <atomic>
#include <optional>

#include "bind/args.hpp"
#include "core/kmedoids/scaled.hpp"

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
  bool checked;
  int threads;
};

// One task per group; a single group has all threads for itself. solve_one(b, weights, options,
// work, labels) returns the solution of one group, or nothing; a pair of points costs `each`, and a
// look of each start. Whether all groups have a solution.
template <class Solve>
bool solve_groups(const Groups& groups, const Request& request, double each, Outputs& out,
                  Solve&& solve_one) {
  index* medoids = out.medoids.mutable_data();
  index* labels = out.labels.mutable_data();
  index* swaps = out.swaps.mutable_data();
  index* passes = out.passes.mutable_data();
  double* cost = out.cost.mutable_data();
  each += 8 * static_cast<double>(request.options.n_init);
  std::atomic<bool> solved{true};
  without_gil(request.threads, [&](Work& work) {
    work.each(groups.count, operations_of_pairs(groups, each), [&](index b, int, Work& own) {
      if (!solved) return;
      KMedoidsOptions options = request.options;
      if (options.given != nullptr) options.given += b * request.k;
      const index first = groups.begin(b);
      const std::optional<KMedoidsSolution> solution =
          solve_one(b, request.weights + first, options, own, labels + first);
      if (!solution) {
        solved = false;
        return;
      }
      std::copy(solution->medoids.begin(), solution->medoids.end(), medoids + b * request.k);
      cost[b] = solution->cost;
      swaps[b] = solution->swaps;
      passes[b] = solution->passes;
    });
  });
  return solved;
}

template <class T>
bool from_points(const py::array& data, const Groups& groups, const Request& request,
                 Outputs& out) {
  const T* x = checked<T>(data, "X", 2);
  const index d = data.shape(1);
  const auto solve = [&](index b, const double* weights, const KMedoidsOptions& options, Work& work,
                         index* labels) {
    return solve_points(rows_of(x, d, groups, b), weights, request.k, options, work, labels);
  };
  return solve_groups(groups, request, static_cast<double>(d) / 8, out, solve);
}

template <class T>
bool from_distances(const py::array& data, const Groups& groups, const Request& request,
                    Outputs& out) {
  const T* distances = checked<T>(data, "D", 1);
  const std::vector<index> starts = square_starts(groups, data.shape(0));
  const auto solve = [&](index b, const double* weights, const KMedoidsOptions& options, Work& work,
                         index* labels) -> std::optional<KMedoidsSolution> {
    const MatrixView<T> group{distances + starts[b], groups.size(b), groups.size(b)};
    if (!request.checked) return solve_unchecked(group, weights, request.k, options, work, labels);
    return solve_distances(group, weights, request.k, options, work, labels);
  };
  return solve_groups(groups, request, 1, out, solve);
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

py::object kmedoids_groups(const py::array& data, const py::array& offsets,
                           const py::array& weights, index k, bool precomputed, bool checked_before,
                           const std::string& search, const std::string& init,
                           const py::array& given, index n_init, std::uint64_t seed,
                           index sample_size, index sampled_above, int threads) {
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
  options.sampled_above = sampled_above;
  options.sample_size = sample_size;
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
  if (!run(data, groups, Request{k, w, options, checked_before, threads}, out)) return py::none();
  return py::make_tuple(out.medoids, out.labels, out.cost, out.swaps, out.passes);
}

}  // namespace

void bind_kmedoids(py::module_& m) {
  m.def("kmedoids", &kmedoids_groups, py::arg("data"), py::arg("offsets"), py::arg("weights"),
        py::arg("k"), py::arg("precomputed"), py::arg("checked"), py::arg("search"),
        py::arg("init"), py::arg("given"), py::arg("n_init"), py::arg("seed"),
        py::arg("sample_size"), py::arg("sampled_above"), py::arg("threads"),
        "Ragged groups of points (T, d), those of more than `sampled_above` sampled, or of "
        "distances laid end to end: (medoids (B*k,), labels (T,), cost (B,), swaps (B,), passes "
        "(B,)); None if distances not checked before are not surely finite, >= 0 and symmetric.");
}

}  // namespace pyfast::bind
