#include <algorithm>

#include "bind/args.hpp"
#include "bind/problems.hpp"
#include "core/kmedoids/certificate.hpp"
#include "core/run/memory.hpp"

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

template <class T>
double largest_distance(const KMedoidsProblem<T>& problem) {
  T largest = 0;
  const T* d = problem.distances.data;
  for (index at = 0; at < problem.points() * problem.points(); ++at) {
    largest = std::max(largest, d[at]);
  }
  return static_cast<double>(largest);
}

template <class T>
void certify_group(const Solutions& all, index b, KMedoidsProblem<T> problem, const Shifts& shifts,
                   const Means& means, double* bounds, char* open) {
  // As the problem has it, which is a power of two times the unit of costs.
  const double largest = all.unit ? largest_distance(problem) : 0.0;
  problem.distances.rows = all.candidates[b];
  const std::vector<index> medoids(all.medoids + all.starts[b], all.medoids + all.starts[b + 1]);
  const double unit = largest > 0 ? largest : 1.0;
  const int exponent = all.unit ? shifts.weights : shifts.costs();
  const double cost = std::ldexp(all.costs[b] * unit, exponent);
  const Certificate found =
      certify(problem, medoids, cost, means.threads, means.cancel, means.token);
  // Dividing again must not lift the bound above the cost.
  bounds[b] = std::min(std::ldexp(found.bound / unit, -exponent), all.costs[b]);
  std::copy(found.open.begin(), found.open.end(), open + all.groups.begin(b));
}

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
  const int inner = groups.count == 1 ? threads : 1;
  without_gil([&](Cancel& cancel) {
    parallel_for(groups.count, threads, cancel, [&](index b, int, Token& token) {
      const Means means{inner, cancel, token};
      const index n = groups.size(b), k = all.counts[b];
      const double* weights = all.weights + groups.begin(b);
      const auto bound = [&](const auto& problem, const Shifts& shifts) {
        certify_group(all, b, problem, shifts, means, bounds, open);
      };
      if (precomputed) {
        with_weights(MatrixView<T>{from + squares[b], n, n}, 0, weights, k, token, bound);
        return;
      }
      const MatrixView<T> x{from + groups.begin(b) * d, n, d};
      if constexpr (sizeof(T) == sizeof(float)) {
        if (all.unit && n > kSmall) {  // costs of unit distances are exact, and so must these be
          const std::vector<double> wide = widen(x, token);
          with_distances(MatrixView<double>{wide.data(), n, d}, weights, k, means, bound);
          return;
        }
      }
      with_distances(x, weights, k, means, bound);
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
