#include <algorithm>

#include "bind/args.hpp"
#include "core/kmedoids/certificate.hpp"

namespace pyfast::bind {

namespace {

// The solutions to certify: counts[b] medoids of each group, end to end, with their costs. The
// first candidates[b] points of a group may become medoids. With `unit`, costs are of distances
// divided by the group's largest.
struct Solutions {
  Groups groups;
  const double* weights;
  const index *candidates, *counts, *medoids;
  std::vector<index> starts;  // of each group's medoids
  const double* costs;
  bool unit;
};

Solutions checked_solutions(const Groups& groups, const py::array& weights,
                            const py::array& candidates, const py::array& counts,
                            const py::array& medoids, const py::array& costs, bool unit) {
  Solutions all{groups,
                checked<double>(weights, "weights", 1),
                checked<index>(candidates, "candidates", 1),
                checked<index>(counts, "counts", 1),
                checked<index>(medoids, "medoids", 1),
                {0},
                checked<double>(costs, "costs", 1),
                unit};
  if (candidates.size() != groups.count || counts.size() != groups.count ||
      costs.size() != groups.count) {
    throw py::type_error("candidates, counts, costs: expected one for each group");
  }
  check_finite(all.weights, weights.size(), "weights");
  check_finite(all.costs, groups.count, "costs");
  for (index b = 0; b < groups.count; ++b) {
    check_range(all.candidates[b], "candidates", 1, groups.size(b));
    check_range(all.counts[b], "counts", 1, all.candidates[b]);
    all.starts.push_back(all.starts.back() + all.counts[b]);
    for (index m = all.starts[b]; m < all.starts[b + 1] && m < medoids.size(); ++m) {
      check_range(all.medoids[m], "medoids", 0, all.candidates[b] - 1);
    }
  }
  if (all.starts.back() != medoids.size()) throw py::type_error("medoids: expected sum of counts");
  return all;
}

template <class T>
void certify_groups(const py::array& data, const Solutions& all, bool precomputed, int threads,
                    double* bounds, char* open) {
  const Groups& groups = all.groups;
  const T* from = checked<T>(data, "data", precomputed ? 1 : 2);
  std::vector<index> squares;
  if (precomputed) squares = square_starts(groups, data.shape(0));
  const index d = precomputed ? 0 : data.shape(1);
  constexpr double kPasses = 50;  // of the bound over the distances, at a guess
  const double operations = operations_of_pairs(groups, static_cast<double>(d) / 8 + kPasses);
  without_gil(threads, [&](Work& work) {
    work.each(groups.count, operations, [&](index b, int, Work& own) {
      const index n = groups.size(b);
      const double* weights = all.weights + groups.begin(b);
      const Solved solved{{all.medoids + all.starts[b], all.medoids + all.starts[b + 1]},
                          all.candidates[b],
                          all.costs[b],
                          all.unit};
      const Certificate found =
          precomputed
              ? certify_distances(MatrixView<T>{from + squares[b], n, n}, weights, solved, own)
              : certify_points(rows_of(from, d, groups, b), weights, solved, own);
      bounds[b] = found.bound;
      std::copy(found.open.begin(), found.open.end(), open + groups.begin(b));
    });
  });
}

py::tuple kmedoids_bounds(const py::array& data, const py::array& offsets, const py::array& weights,
                          const py::array& candidates, const py::array& counts,
                          const py::array& medoids, const py::array& costs, bool precomputed,
                          bool unit, int threads) {
  const index total = weights.size();
  const Groups groups = checked_groups(offsets, total);
  if (!precomputed && data.ndim() == 2 && data.shape(0) != total) {
    throw py::type_error("data: expected one row per weight");
  }
  check_range(threads, "threads", 1, kMostThreads);
  const Solutions all =
      checked_solutions(groups, weights, candidates, counts, medoids, costs, unit);
  py::array_t<double> bounds(groups.count);
  py::array_t<bool> open(total);
  std::fill_n(open.mutable_data(), total, false);
  static_assert(sizeof(bool) == sizeof(char));
  const auto run = is_float32(data) ? certify_groups<float> : certify_groups<double>;
  run(data, all, precomputed, threads, bounds.mutable_data(),
      reinterpret_cast<char*>(open.mutable_data()));
  return py::make_tuple(bounds, open);
}

}  // namespace

void bind_certificate(py::module_& m) {
  m.def("kmedoids_bounds", &kmedoids_bounds, py::arg("data"), py::arg("offsets"),
        py::arg("weights"), py::arg("candidates"), py::arg("counts"), py::arg("medoids"),
        py::arg("costs"), py::arg("precomputed"), py::arg("unit"), py::arg("threads"),
        "Lower bounds (B,), and whether a cheaper set may contain each point (T,).");
}

}  // namespace pyfast::bind
