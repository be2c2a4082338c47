#include <algorithm>
#include <set>

#include "check.hpp"
#include "core/distance/euclidean.hpp"
#include "core/distance/exact.hpp"
#include "core/kmeans/kmeans.hpp"

namespace pyfast::test {

namespace {

KMeansSolution cluster(const std::vector<double>& x, index n, index k, index n_init = 1) {
  Work work;
  KMeansOptions options;
  options.n_init = n_init;
  const index d = static_cast<index>(x.size()) / n;
  ExactSquares workspace;
  return kmeans(MatrixView<double>{x.data(), n, d}, k, options, workspace, work);
}

}  // namespace

TEST(well_separated_clusters_are_found) {
  std::vector<double> x = uniform(30 * 2, 1, -0.1, 0.1);
  for (std::size_t i = 0; i < 30; ++i) x[2 * i] += 10.0 * double(i % 3);
  const KMeansSolution found = cluster(x, 30, 3);
  for (std::size_t i = 3; i < 30; ++i) CHECK(found.labels[i] == found.labels[i % 3]);
  CHECK(found.inertia < 30 * 0.02);
}

TEST(every_cluster_has_a_member) {
  for (unsigned seed = 0; seed < 30; ++seed) {
    const index n = 2 + seed % 12;
    std::vector<double> x = uniform(std::size_t(n * 3), seed);
    if (seed % 2) std::fill(x.begin(), x.begin() + n, 0.0);
    if (seed % 5 == 0) std::fill(x.begin(), x.end(), 1.0);  // nothing but duplicates
    for (index k = 1; k <= n; ++k) {
      const KMeansSolution found = cluster(x, n, k);
      const std::set<index> used(found.labels.begin(), found.labels.end());
      CHECK(static_cast<index>(used.size()) == k && *used.begin() == 0 && *used.rbegin() == k - 1);
    }
  }
}

TEST(more_starts_never_raise_the_inertia) {
  const std::vector<double> x = uniform(60 * 4, 3);
  CHECK(cluster(x, 60, 7, 20).inertia <= cluster(x, 60, 7, 1).inertia);
}

TEST(overflowing_squares_are_refused) {
  CHECK_THROWS(cluster({1e200, -1e200, 0, 1}, 4, 2), std::range_error);
}

TEST(distances_survive_extreme_scales) {
  const std::vector<float> x{0, 0, 3e-30f, 4e-30f, 3e25f, 4e25f};
  std::vector<float> d(9);
  Work work;
  euclidean_distances(MatrixView<float>{x.data(), 3, 2}, d.data(), work);
  CHECK_NEAR(d[1], 5e-30f, 1e-36f);
  CHECK_NEAR(d[2], 5e25f, 1e19f);
  CHECK(d[0] == 0 && d[4] == 0 && d[3] == d[1]);
}

TEST(squared_distance_matches_a_plain_sum_for_every_tail) {
  for (index d = 1; d < 70; ++d) {
    const std::vector<double> a = uniform(std::size_t(d), 1), b = uniform(std::size_t(d), 2);
    double sum = 0;
    for (std::size_t t = 0; t < std::size_t(d); ++t) sum += (a[t] - b[t]) * (a[t] - b[t]);
    CHECK_NEAR(squared_distance(a.data(), b.data(), d), sum, 1e-13 * sum);
  }
}

}  // namespace pyfast::test
