#include <limits>

#include "bind/args.hpp"
#include "core/ampo/group.hpp"
#include "core/ampo/opt_select.hpp"

namespace pyfast::bind {

namespace {

// Runs select(group, worker, work) over ragged groups, each pair of whose points costs `each`, and
// lays the answers end to end.
template <class Select>
py::tuple select_groups(const Groups& groups, double each, int threads, Select&& select) {
  std::vector<GroupSelection> selections(static_cast<std::size_t>(groups.count));
  without_gil(threads, [&](Work& work) {
    work.each(groups.count, operations_of_pairs(groups, each),
              [&](index b, int worker, Work& own) { selections[b] = select(b, worker, own); });
  });
  py::array_t<index> positive(groups.count);
  py::array_t<double> cost(groups.count);
  std::vector<index> negatives, ends{0};
  for (index b = 0; b < groups.count; ++b) {
    const GroupSelection& s = selections[b];
    positive.mutable_at(b) = s.positive;
    cost.mutable_at(b) = s.cost;
    negatives.insert(negatives.end(), s.negatives.begin(), s.negatives.end());
    ends.push_back(static_cast<index>(negatives.size()));
  }
  return py::make_tuple(positive, to_array(negatives), to_array(ends), cost);
}

// Calls `run` with a MatrixView of the embeddings' own type for group b.
template <class Run>
py::tuple by_type(const py::array& embeddings, Run&& run) {
  return is_float32(embeddings) ? run(checked<float>(embeddings, "embeddings", 2))
                                : run(checked<double>(embeddings, "embeddings", 2));
}

// Rewards that can be sorted, and counts that can size a loop.
const double* checked_rewards(const py::array& rewards, index k, int threads) {
  const double* r = checked<double>(rewards, "rewards", 1);
  check_finite(r, rewards.size(), "rewards");
  check_range(k, "k", 1, std::numeric_limits<index>::max());
  check_range(threads, "threads", 1, kMostThreads);
  return r;
}

void check_rows(const py::array& embeddings, const py::array& rewards) {
  if (embeddings.ndim() == 2 && embeddings.shape(0) != rewards.size()) {
    throw py::type_error("embeddings: expected one row per reward");
  }
}

py::tuple opt_select_groups(const py::array& embeddings, const py::array& rewards,
                            const py::array& offsets, index k, bool cover_top, bool scale_rewards,
                            const std::string& search, const std::string& init, index n_init,
                            std::uint64_t seed, int threads) {
  check_rows(embeddings, rewards);
  const Groups groups = checked_groups(offsets, rewards.size());
  const double* r = checked_rewards(rewards, k, threads);
  check_range(n_init, "n_init", 1, kMostStarts);
  OptSelectOptions options{k, cover_top, scale_rewards, {}};
  options.search.search = search == "best" ? Search::best : Search::eager;
  options.search.init =
      init == "greedy" ? KMedoidsOptions::Init::greedy : KMedoidsOptions::Init::random;
  options.search.n_init = n_init;
  options.search.seed = seed;
  return by_type(embeddings, [&](const auto* x) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(x)>>;
    const index d = embeddings.shape(1);
    const auto rows = [&](index b) {
      return b < groups.count ? rows_of(x, d, groups, b) : MatrixView<T>{};
    };
    std::vector<OptSelect<T>> workers;
    while (static_cast<index>(workers.size()) < std::min<index>(threads, groups.count)) {
      workers.emplace_back(options);
    }
    const double each = static_cast<double>(d) / 8 + 8 * static_cast<double>(n_init);
    return select_groups(groups, each, threads, [&](index b, int worker, Work& work) {
      // What this worker will probably be given next.
      const MatrixView<T> next = rows(b + static_cast<index>(workers.size()));
      return workers[worker].select(rows(b), r + groups.begin(b), next, work);
    });
  });
}

py::tuple coreset_groups(const py::array& embeddings, const py::array& rewards,
                         const py::array& offsets, index k, index n_init, index max_iter,
                         std::uint64_t seed, int threads) {
  check_rows(embeddings, rewards);
  const Groups groups = checked_groups(offsets, rewards.size());
  const double* r = checked_rewards(rewards, k, threads);
  check_range(n_init, "n_init", 1, kMostStarts);
  check_range(max_iter, "max_iter", 1, std::numeric_limits<index>::max());
  const KMeansOptions options{n_init, max_iter, seed};
  return by_type(embeddings, [&](const auto* x) {
    const index d = embeddings.shape(1);
    std::vector<ExactSquares> workspaces(
        static_cast<std::size_t>(std::min<index>(threads, groups.count)));
    const double each = static_cast<double>(d) / 8 + 8 * static_cast<double>(n_init);
    return select_groups(groups, each, threads, [&](index b, int worker, Work& work) {
      return coreset(rows_of(x, d, groups, b), r + groups.begin(b), k, options, workspaces[worker],
                     work);
    });
  });
}

py::tuple bottom_k_groups(const py::object& embeddings, const py::array& rewards,
                          const py::array& offsets, index k, int threads) {
  const Groups groups = checked_groups(offsets, rewards.size());
  const double* r = checked_rewards(rewards, k, threads);
  const auto run = [&](const auto* x, index d) {
    return select_groups(
        groups, static_cast<double>(d) / 8 + 1, threads, [&](index b, int, Work& work) {
          const auto rows =
              x == nullptr ? decltype(rows_of(x, d, groups, b)){} : rows_of(x, d, groups, b);
          return bottom_k(rows, r + groups.begin(b), groups.size(b), k, work);
        });
  };
  if (embeddings.is_none()) return run(static_cast<const double*>(nullptr), 0);
  const auto array = embeddings.cast<py::array>();
  check_rows(array, rewards);
  return by_type(array, [&](const auto* x) { return run(x, array.shape(1)); });
}

}  // namespace

void bind_groups(py::module_& m) {
  m.def("opt_select", &opt_select_groups, py::arg("embeddings"), py::arg("rewards"),
        py::arg("offsets"), py::arg("k"), py::arg("cover_top"), py::arg("scale_rewards"),
        py::arg("search"), py::arg("init"), py::arg("n_init"), py::arg("seed"), py::arg("threads"),
        "Ragged groups: (positive (B,), negatives end to end, their offsets (B+1,), cost (B,)).");
  m.def("coreset", &coreset_groups, py::arg("embeddings"), py::arg("rewards"), py::arg("offsets"),
        py::arg("k"), py::arg("n_init"), py::arg("max_iter"), py::arg("seed"), py::arg("threads"),
        "As opt_select; cost is the inertia.");
  m.def("bottom_k", &bottom_k_groups, py::arg("embeddings"), py::arg("rewards"), py::arg("offsets"),
        py::arg("k"), py::arg("threads"),
        "As opt_select, for embeddings or None; cost is the sum of the chosen rewards.");
}

}  // namespace pyfast::bind
