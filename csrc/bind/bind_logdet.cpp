#include <algorithm>
#include <optional>

#include "bind/args.hpp"
#include "core/logdet/best_subset.hpp"
#include "core/logdet/logdet.hpp"
#include "core/logdet/mass_dpo.hpp"

namespace pyfast::bind {

namespace {

// The vectors chosen before, as Python's LogDetState holds them; none if they have no rows.
LogDetState checked_state(const py::array& vectors, const py::array& factor, double logdet,
                          index d) {
  LogDetState state;
  state.vectors = checked<double>(vectors, "vectors", 2);
  state.factor = checked<double>(factor, "factor", 2);
  state.count = vectors.shape(0);
  state.logdet = logdet;
  if (state.count > 0 && vectors.shape(1) != d) {
    throw py::type_error("vectors: expected " + std::to_string(d) + " columns");
  }
  if (factor.shape(0) != state.count || factor.shape(1) != state.count) {
    throw py::type_error("factor: expected one row and one column per vector");
  }
  return state;
}

void check_counts(index k, index candidates, int threads) {
  check_range(k, "k", 1, candidates);
  check_range(threads, "threads", 1, kMostThreads);
}

py::array_t<double> matrix(index rows, index columns) {
  return py::array_t<double>(std::vector<py::ssize_t>{rows, columns});
}

// One group: with the state that carries on.
py::tuple carry_on(const Candidates& candidates, index k, double gamma, double scale,
                   const LogDetState& before, int threads) {
  check_counts(k, candidates.count(), threads);
  const index total = before.count + k;
  py::array_t<index> picks = new_indices(k);
  py::array_t<double> gains(k), vectors = matrix(k, candidates.dims()),
                                factor = matrix(total, total);
  const LogDetAnswer answer{picks.mutable_data(), gains.mutable_data(), vectors.mutable_data(),
                            factor.mutable_data()};
  const LogDetProblem problem{&candidates, k, gamma, scale, before};
  double logdet = 0;
  without_gil(threads, [&](Work& work) { logdet = LogDetGreedy().solve(problem, answer, work); });
  return py::make_tuple(picks, gains, logdet, vectors, factor);
}

py::tuple logdet_one(const py::array& data, index k, double gamma, double scale,
                     const py::array& vectors, const py::array& factor, double logdet,
                     int threads) {
  const auto run = [&](const auto* x) {
    const index n = data.shape(0), d = data.shape(1);
    const RowCandidates candidates(MatrixView<std::decay_t<decltype(*x)>>{x, n, d});
    return carry_on(candidates, k, gamma, scale, checked_state(vectors, factor, logdet, d),
                    threads);
  };
  return is_float32(data) ? run(checked<float>(data, "V", 2)) : run(checked<double>(data, "V", 2));
}

py::tuple logdet_pairs(const py::array& sketches, const py::array& pairs,
                       const py::array& row_scales, const py::array& pair_scales, index k,
                       double gamma, const py::array& vectors, const py::array& factor,
                       double logdet, int threads, const std::optional<py::array>& row_lengths) {
  const index* ends = checked<index>(pairs, "pairs", 2);
  const double* of_rows = checked<double>(row_scales, "row_scales", 1);
  const double* of_pairs = checked<double>(pair_scales, "pair_scales", 1);
  const double* lengths = row_lengths ? checked<double>(*row_lengths, "row_lengths", 1) : nullptr;
  const index n = pairs.shape(0);
  const auto run = [&](const auto* x) {
    const index rows = sketches.shape(0), d = sketches.shape(1);
    if (pairs.shape(1) != 2 || pair_scales.size() != n || row_scales.size() != rows ||
        (row_lengths && row_lengths->size() != rows)) {
      throw py::type_error("pairs: expected (P, 2), with one scale per pair and per row");
    }
    for (index e = 0; e < 2 * n; ++e) {
      if (ends[e] < 0 || ends[e] >= rows) throw py::type_error("pairs: expected rows of sketches");
    }
    const PairCandidates candidates(MatrixView<std::decay_t<decltype(*x)>>{x, rows, d}, ends, n,
                                    of_rows, of_pairs, lengths);
    return carry_on(candidates, k, gamma, 1.0, checked_state(vectors, factor, logdet, d), threads);
  };
  return is_float32(sketches) ? run(checked<float>(sketches, "sketches", 2))
                              : run(checked<double>(sketches, "sketches", 2));
}

py::array_t<index> logdet_best_subset(const py::array& data, index k, double gamma, double scale,
                                      const py::array& vectors) {
  const auto run = [&](const auto* x) {
    const index n = data.shape(0), d = data.shape(1);
    const MatrixView<double> before{checked<double>(vectors, "vectors", 2), vectors.shape(0), d};
    if (vectors.shape(1) != d) {
      throw py::type_error("vectors: expected " + std::to_string(d) + " columns");
    }
    check_counts(k, n, 1);
    const RowCandidates candidates(MatrixView<std::decay_t<decltype(*x)>>{x, n, d});
    py::array_t<index> picks = new_indices(k);
    index* to = picks.mutable_data();
    without_gil(1, [&](Work& work) { best_subset(candidates, k, gamma, scale, before, to, work); });
    return picks;
  };
  return is_float32(data) ? run(checked<float>(data, "V", 2)) : run(checked<double>(data, "V", 2));
}

// Many groups of vectors of d numbers. solve_one(worker's own Solver, group, answer, work) returns
// the log-determinant.
template <class Solver, class Solve>
py::tuple solve_groups(const Groups& groups, index d, index k, int threads, Solve&& solve_one) {
  py::array_t<index> picks = new_indices(groups.count * k);
  py::array_t<double> gains(groups.count * k), logdets(groups.count);
  index* to_picks = picks.mutable_data();
  double* to_gains = gains.mutable_data();
  double* to_logdets = logdets.mutable_data();
  const double operations = static_cast<double>(groups.offsets[groups.count]) *
                            static_cast<double>(d + 16) * static_cast<double>(k) / kSharedFrom;
  std::vector<Solver> solvers(static_cast<std::size_t>(std::min<index>(threads, groups.count)));
  without_gil(threads, [&](Work& work) {
    work.each(groups.count, operations, [&](index b, int worker, Work& own) {
      const LogDetAnswer answer{to_picks + b * k, to_gains + b * k, nullptr, nullptr};
      to_logdets[b] = solve_one(solvers[worker], b, answer, own);
    });
  });
  return py::make_tuple(picks, gains, logdets);
}

py::tuple logdet_groups(const py::array& data, const py::array& offsets, index k, double gamma,
                        double scale, int threads) {
  const auto run = [&](const auto* x) {
    const index d = data.shape(1);
    const Groups groups = checked_groups(offsets, data.shape(0));
    for (index b = 0; b < groups.count; ++b) check_counts(k, groups.size(b), threads);
    return solve_groups<LogDetGreedy>(
        groups, d, k, threads,
        [&](LogDetGreedy& greedy, index b, const LogDetAnswer& answer, Work& work) {
          const RowCandidates candidates(rows_of(x, d, groups, b));
          return greedy.solve({&candidates, k, gamma, scale, {}}, answer, work);
        });
  };
  return is_float32(data) ? run(checked<float>(data, "V", 2)) : run(checked<double>(data, "V", 2));
}

py::tuple mass_dpo_groups(const py::array& features, const py::array& policy_logps,
                          const py::array& ref_logps, const py::array& preferred,
                          const py::array& offsets, index k, double beta, double gamma, bool fisher,
                          int threads) {
  const Groups groups = checked_groups(offsets, policy_logps.size());
  const double* policy = checked<double>(policy_logps, "policy_logps", 1);
  const double* ref = checked<double>(ref_logps, "ref_logps", 1);
  const index* best = checked<index>(preferred, "preferred", 1);
  if (ref_logps.size() != policy_logps.size() || preferred.size() != groups.count) {
    throw py::type_error("ref_logps, preferred: expected one per response and one per group");
  }
  for (index b = 0; b < groups.count; ++b) {
    check_counts(k, groups.size(b) - 1, threads);
    if (best[b] < 0 || best[b] >= groups.size(b)) {
      throw py::type_error("preferred: expected a position in the group");
    }
  }
  const MassDpoOptions options{k, beta, gamma, fisher};
  const auto run = [&](const auto* x) {
    if (features.shape(0) != policy_logps.size()) {
      throw py::type_error("features: expected one row per response");
    }
    const index d = features.shape(1);
    return solve_groups<MassDpo>(
        groups, d, k, threads,
        [&](MassDpo& solver, index b, const LogDetAnswer& answer, Work& work) {
          const index first = groups.begin(b);
          return solver.solve(rows_of(x, d, groups, b), policy + first, ref + first, best[b],
                              options, answer, work);
        });
  };
  return is_float32(features) ? run(checked<float>(features, "features", 2))
                              : run(checked<double>(features, "features", 2));
}

py::array_t<double> squared_norms(const py::array& data, int threads) {
  check_range(threads, "threads", 1, kMostThreads);
  py::array_t<double> out(data.ndim() > 0 ? data.shape(0) : 0);
  double* to = out.mutable_data();
  const auto run = [&](const auto* x) {
    const index d = data.shape(1);
    without_gil(threads, [&](Work& work) {
      const index n = data.shape(0);
      constexpr index kRows = 16;
      const double numbers = static_cast<double>(n) * static_cast<double>(d);
      work.each((n + kRows - 1) / kRows, numbers / 8, [&](index b, int, Work& own) {
        const index first = b * kRows, count = std::min(kRows, n - first);
        own.spend(count * d);
        const MatrixView<std::decay_t<decltype(*x)>> rows{x + first * d, count, d};
        pyfast::squared_norms(rows, to + first);
      });
    });
    return out;
  };
  return is_float32(data) ? run(checked<float>(data, "data", 2))
                          : run(checked<double>(data, "data", 2));
}

}  // namespace

void bind_logdet(py::module_& m) {
  m.def("logdet_one", &logdet_one, py::arg("data"), py::arg("k"), py::arg("gamma"),
        py::arg("scale"), py::arg("vectors"), py::arg("factor"), py::arg("logdet"),
        py::arg("threads"),
        "One group (n, d) after the vectors chosen before: (picks (k,), gains (k,), logdet, the "
        "picked vectors (k, d), the factor of all).");
  m.def("logdet_pairs", &logdet_pairs, py::arg("sketches"), py::arg("pairs"), py::arg("row_scales"),
        py::arg("pair_scales"), py::arg("k"), py::arg("gamma"), py::arg("vectors"),
        py::arg("factor"), py::arg("logdet"), py::arg("threads"),
        py::arg("row_lengths") = py::none(),
        "As logdet_one for scaled differences of two rows (P, 2) of the sketches; with the rows' "
        "lengths it need not subtract them first.");
  m.def("logdet_groups", &logdet_groups, py::arg("data"), py::arg("offsets"), py::arg("k"),
        py::arg("gamma"), py::arg("scale"), py::arg("threads"),
        "Ragged groups: (picks (B*k,), gains (B*k,), logdet (B,)).");
  m.def("logdet_best_subset", &logdet_best_subset, py::arg("data"), py::arg("k"), py::arg("gamma"),
        py::arg("scale"), py::arg("vectors"),
        "The best subset of one group (n, d) after the vectors chosen before: (k,), ascending.");
  m.def("mass_dpo", &mass_dpo_groups, py::arg("features"), py::arg("policy_logps"),
        py::arg("ref_logps"), py::arg("preferred"), py::arg("offsets"), py::arg("k"),
        py::arg("beta"), py::arg("gamma"), py::arg("fisher"), py::arg("threads"),
        "Ragged groups: (negatives (B*k,), gains (B*k,), logdet (B,)).");
  m.def("squared_norms", &squared_norms, py::arg("data"), py::arg("threads"),
        "Of each row, summed in float64: (n,).");
}

}  // namespace pyfast::bind
