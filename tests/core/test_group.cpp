#include <algorithm>

#include "check.hpp"
#include "core/ampo/group.hpp"

namespace pyfast::test {

namespace {

GroupSelection opt(const std::vector<double>& x, const std::vector<double>& r, index k,
                   bool cover_top = false) {
  Work work;
  const index n = static_cast<index>(r.size());
  const MatrixView<double> view{x.data(), n, static_cast<index>(x.size()) / n};
  KMedoidsOptions options;
  options.n_init = 10;
  return opt_select(view, r.data(), k, cover_top, options, work);
}

GroupSelection bottom(const std::vector<double>& r, index k, const std::vector<double>& x = {}) {
  Work work;
  const index n = static_cast<index>(r.size());
  const MatrixView<double> view{x.empty() ? nullptr : x.data(), n,
                                static_cast<index>(x.size()) / n};
  return bottom_k(view, r.data(), n, k, work);
}

using Indices = std::vector<index>;

}  // namespace

TEST(the_first_best_response_leaves_the_pool) {
  const GroupSelection s = opt({0, 1, 2, 3, 4}, {0, 5, 1, 5, 2}, 9);
  CHECK(s.positive == 1);
  CHECK((s.negatives == Indices{0, 2, 3, 4}));
  CHECK(s.cost == 0);
}

TEST(one_response_has_no_negatives) {
  CHECK(opt({1.0}, {3.0}, 2).negatives.empty());
  CHECK(bottom({3.0}, 2).negatives.empty());
}

TEST(low_rewards_pull_the_medoids) {
  // Pool at 0, 1, 10 (positive elsewhere): with k = 1 equal rewards choose the middle; a very bad
  // response alone cannot outweigh two others by more than e, so compare by hand.
  const std::vector<double> x{0, 1, 10, 50};
  CHECK((opt(x, {0, 0, 0, 1}, 1).negatives == Indices{1}));
  // Weights exp(mean - r): r = (1, 1, 0) scaled by group max 1 -> w = e^-1/3, e^-1/3, e^2/3.
  // cost(1) = .717*1 + 1.948*9 = 18.2; cost(2) = .717*(10+9) = 13.6.
  CHECK((opt(x, {0.999, 0.999, 0, 1}, 1).negatives == Indices{2}));
}

TEST(covering_the_top_adds_a_point_but_no_candidate) {
  // Pool at 0 and 1: the slightly worse 0 wins. The top at 100, once covered, pulls to 1.
  const std::vector<double> x{0, 1, 100}, r{0, 0.01, 1};
  CHECK((opt(x, r, 1, false).negatives == Indices{0}));
  CHECK((opt(x, r, 1, true).negatives == Indices{1}));
  const GroupSelection all = opt(x, r, 2, true);
  CHECK((all.negatives == Indices{0, 1}));
  // Only the top is uncovered: weight exp(mean - 1) with mean = 1.01 / 3, distance 99 of 100.
  CHECK_NEAR(all.cost, std::exp(1.01 / 3 - 1) * 0.99, 1e-14);
}

TEST(large_groups_are_the_same_for_every_thread_count) {
  const index n = 300, d = 400;
  const std::vector<double> x = uniform(std::size_t(n * d), 1, -1, 1), r = uniform(n, 2);
  using Init = KMedoidsOptions::Init;
  for (const Init init : {Init::random, Init::greedy}) {  // on float distances first; on exact ones
    GroupSelection of_one;
    for (const int threads : {1, 2, 3}) {
      Work work(threads);
      KMedoidsOptions options;
      options.init = init;
      const GroupSelection s =
          opt_select(MatrixView<double>{x.data(), n, d}, r.data(), 6, false, options, work);
      if (threads == 1) of_one = s;
      CHECK(s.negatives == of_one.negatives);
      CHECK(s.cost == of_one.cost);
    }
  }
}

TEST(bottom_k_breaks_ties_by_similarity_then_index) {
  CHECK((bottom({3, 1, 2, 1, 9}, 3).negatives == Indices{1, 3, 2}));
  // Lowest is 0; 1, 2, 3 tie: 2 is orthogonal to 0, 3 opposite, 1 parallel.
  const std::vector<double> x{1, 0, 2, 0, 0, 1, -1, 0, 5, 5};
  CHECK((bottom({0, 1, 1, 1, 9}, 2, x).negatives == Indices{0, 3}));
  CHECK((bottom({0, 1, 1, 1, 9}, 3, x).negatives == Indices{0, 3, 2}));
  CHECK((bottom({0, 1, 1, 1, 9}, 4, x).negatives == Indices{0, 3, 2, 1}));
}

TEST(coreset_takes_the_lowest_of_each_cluster) {
  const std::vector<double> x{0, 0.1, 0.2, 10, 10.1, 20, 5};
  const std::vector<double> r{3, 1, 2, 4, 3, 0, 9};
  Work work;
  ExactSquares workspace;
  const GroupSelection s =
      coreset(MatrixView<double>{x.data(), 7, 1}, r.data(), 3, KMeansOptions{}, workspace, work);
  CHECK(s.positive == 6);
  CHECK((s.negatives == Indices{1, 4, 5}));
}

}  // namespace pyfast::test
