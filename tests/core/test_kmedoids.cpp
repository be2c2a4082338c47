#include <algorithm>
#include <fstream>
#include <regex>
#include <set>
#include <string>

#include "check.hpp"
#include "core/distance/euclidean.hpp"
#include "core/distance/exact.hpp"
#include "core/kmedoids/build.hpp"
#include "core/kmedoids/kmedoids.hpp"
#include "core/naive/kmedoids.hpp"
#include "core/run/random.hpp"

namespace pyfast::test {

namespace {

struct Random2D {
  std::vector<double> distances, weights;
  KMedoidsProblem<double> problem;

  Random2D(index n, index k, unsigned seed) : weights(uniform(std::size_t(n), seed + 1000)) {
    const std::vector<double> x = uniform(std::size_t(2 * n), seed);
    Work work;
    distances.resize(std::size_t(n * n));
    euclidean_distances(MatrixView<double>{x.data(), n, 2}, distances.data(), work);
    problem = {{distances.data(), n, n}, weights.data(), k};
  }
};

bool has_improving_swap(const KMedoidsProblem<double>& problem, const std::vector<index>& set) {
  return naive::best_trajectory(problem, set).size() > 1;
}

}  // namespace

// The examples in the map's table, csrc/README.md.
TEST(plan_is_what_the_map_says) {
  std::string file = __FILE__;
  std::ifstream map(file.substr(0, file.rfind("tests/core")) + "csrc/README.md");
  const std::regex row(
      R"(\| `(points|distances) n=(\d+) k=(\d+) (eager|best) (random|greedy)` \| (\w+) \|)");
  std::set<std::string> ways;
  for (std::string line; std::getline(map, line);) {
    std::smatch found;
    if (!std::regex_search(line, found, row)) continue;
    KMedoidsOptions options;
    options.search = found[4] == "best" ? Search::best : Search::eager;
    options.init =
        found[5] == "greedy" ? KMedoidsOptions::Init::greedy : KMedoidsOptions::Init::random;
    options.sampled_above = options.sample_size = 20000;
    const index n = std::stol(found[2]);
    CHECK(name_of(plan({n, n, std::stol(found[3]), found[1] == "distances"}, options)) == found[6]);
    ways.insert(found[6]);
  }
  CHECK(ways.size() == 6);
}

TEST(best_follows_appendix_e) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const index n = 4 + seed % 13, k = 1 + seed % 4;
    const Random2D data(n, k, seed);
    const auto start = drawn(n, k, seed, 0);
    const auto visited = naive::best_trajectory(data.problem, start);
    const KMedoidsSolution found = swap_search<double>(data.problem, start, Search::best);
    CHECK(found.medoids == visited.back());
    CHECK(found.swaps == static_cast<index>(visited.size()) - 1);
  }
}

TEST(best_breaks_exact_ties_as_appendix_e_does) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    const index n = 3 + seed % 10, k = 1 + seed % std::min<index>(n - 1, 4);
    const std::vector<double> d = exact_distances(n, seed);
    std::vector<double> w(std::size_t(n), 1.0);
    w[seed % std::size_t(n)] = seed % 3;  // zero, one and two
    const KMedoidsProblem<double> problem{{d.data(), n, n}, w.data(), k};
    const auto start = drawn(n, k, seed, 0);
    CHECK(swap_search<double>(problem, start, Search::best).medoids ==
          naive::best_trajectory(problem, start).back());
  }
}

TEST(both_searches_end_in_a_local_optimum_of_the_cost_they_report) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const index n = 5 + seed % 20, k = 1 + seed % 5;
    const Random2D data(n, k, seed);
    for (const Search how : {Search::best, Search::eager}) {
      const auto found = swap_search<double>(data.problem, drawn(n, k, seed, 0), how);
      CHECK(!has_improving_swap(data.problem, found.medoids));
      CHECK_NEAR(found.cost, naive::cost(data.problem, found.medoids), 1e-12 * found.cost);
      CHECK(found.cost >= naive::optimum(data.problem) * (1 - 1e-12));
      CHECK(found.cost <= 5 * naive::optimum(data.problem));  // Arya et al. 2001
    }
  }
}

TEST(greedy_takes_the_best_candidate_each_time) {
  const Random2D data(12, 4, 5);
  Work work;
  std::vector<index> chosen;
  for (const index next : greedy_start(data.problem, work)) {
    std::vector<index> with = chosen;
    with.push_back(next);
    for (index other = 0; other < 12; ++other) {
      std::vector<index> rival = chosen;
      rival.push_back(other);
      CHECK(naive::cost(data.problem, with) <= naive::cost(data.problem, rival) + 1e-12);
    }
    chosen = with;
  }
  CHECK(chosen.size() == 4);
}

TEST(float_and_double_distances_agree_when_float_holds_them) {
  const index n = 14;
  const std::vector<double> wide = exact_distances(n, 3);
  const std::vector<float> narrow(wide.begin(), wide.end());
  const std::vector<double> w = uniform(n, 9);
  Work work;
  for (const Search how : {Search::best, Search::eager}) {
    const auto a =
        swap_search(KMedoidsProblem<double>{{wide.data(), n, n}, w.data(), 4}, first(4), how);
    const auto b =
        swap_search(KMedoidsProblem<float>{{narrow.data(), n, n}, w.data(), 4}, first(4), how);
    CHECK(a.medoids == b.medoids && a.cost == b.cost && a.swaps == b.swaps);
  }
}

TEST(degenerate_problems_return_k_distinct_medoids) {
  const index n = 6;
  const std::vector<double> zeros(std::size_t(n * n), 0.0), ones(std::size_t(n), 1.0),
      none(std::size_t(n), 0.0), d = exact_distances(n, 1);
  for (index k = 1; k <= n; ++k) {
    for (const Search how : {Search::best, Search::eager}) {
      for (const auto& problem : {KMedoidsProblem<double>{{zeros.data(), n, n}, ones.data(), k},
                                  KMedoidsProblem<double>{{d.data(), n, n}, none.data(), k},
                                  KMedoidsProblem<double>{{d.data(), n, n}, ones.data(), k}}) {
        auto medoids = swap_search<double>(problem, first(k), how).medoids;
        CHECK(std::adjacent_find(medoids.begin(), medoids.end()) == medoids.end());
        CHECK(static_cast<index>(medoids.size()) == k &&
              std::is_sorted(medoids.begin(), medoids.end()));
      }
    }
  }
}

// Nobody should ask, but a caller of the core that checks nothing must not wait for ever.
TEST(searches_over_negative_distances_end) {
  for (const index n : {6, 200}) {  // the search for small problems, and the other
    for (unsigned seed = 0; seed < 20; ++seed) {
      const std::vector<double> d = uniform(std::size_t(n * n), seed, -2, 1);
      const std::vector<double> ones(std::size_t(n), 1.0);
      for (const Search how : {Search::best, Search::eager}) {
        const auto found = swap_search<double>({{d.data(), n, n}, ones.data(), 3}, first(3), how);
        CHECK(std::adjacent_find(found.medoids.begin(), found.medoids.end()) ==
              found.medoids.end());
      }
    }
  }
}

TEST(only_candidates_become_medoids) {
  const Random2D data(9, 3, 2);
  KMedoidsProblem<double> problem = data.problem;
  problem.distances.rows = 5;
  for (const Search how : {Search::best, Search::eager}) {
    const auto found = swap_search<double>(problem, first(3), how);
    CHECK(found.medoids.back() < 5);
    CHECK_NEAR(found.cost, naive::optimum(problem), 0.5 * found.cost);
    CHECK(!has_improving_swap(problem, found.medoids));
  }
}

TEST(overflowing_costs_are_refused) {
  const std::vector<double> d{0, 1e10, 2e10, 1e10, 0, 1e10, 2e10, 1e10, 0};
  const std::vector<double> w(3, 1e300);
  CHECK_THROWS(swap_search<double>({{d.data(), 3, 3}, w.data(), 2}, first(2), Search::eager),
               std::range_error);
}

TEST(more_starts_never_cost_more_and_threads_do_not_matter) {
  const Random2D data(40, 5, 11);
  Work work, four(4);
  double last = 1e300;
  for (const index starts : {1, 2, 5, 20}) {
    KMedoidsOptions options;
    options.n_init = starts;
    const auto one = solve(data.problem, options, work);
    const auto two = solve(data.problem, options, four);
    CHECK(one.medoids == two.medoids && one.cost == two.cost);
    CHECK(one.cost <= last);
    last = one.cost;
  }
}

}  // namespace pyfast::test
