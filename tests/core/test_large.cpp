// The pieces that k-medoids of many points is made of.
#include <algorithm>
#include <limits>
#include <numeric>

#include "check.hpp"
#include "core/distance/byte_bounds.hpp"
#include "core/distance/check.hpp"
#include "core/distance/euclidean.hpp"
#include "core/distance/exact.hpp"
#include "core/kmedoids/assign.hpp"
#include "core/kmedoids/certificate.hpp"
#include "core/kmedoids/sampled.hpp"
#include "core/naive/kmedoids.hpp"

namespace pyfast::test {

namespace {

const char* const kLevels[] = {"baseline", "avx2", "avx512"};

template <class T>
std::vector<T> converted(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

template <class T>
void check_bytes(double spread) {
  const index n = 300;
  const std::vector<T> seconds = converted<T>(uniform(n, 1, 0, spread));
  std::vector<T> d = converted<T>(uniform(n, 2, 0, 3 * spread));
  for (index i = 0; i < n; i += 10) d[i] = seconds[i];  // on the limit, or 0
  for (index i = 5; i < n; i += 50) d[i] = 0;
  ByteBounds<T> bounds(2, seconds);
  bounds.add(1, 0, 100, d.data());
  bounds.add(1, 100, n - 100, d.data() + 100);
  double most = 0;
  for (index i = 0; i < n; ++i) {
    const unsigned char bound = bounds.row(1)[i];
    const auto exact = static_cast<double>(d[i]);
    CHECK(bounds.least(i, bound) <= exact);
    if (bound < 255) most = std::max(most, (exact - bounds.least(i, bound)) / bounds.least(i, 1));
    for (const double limit : {exact * (1 + 1e-9), exact * 1.5, static_cast<double>(seconds[i])}) {
      if (exact < limit) CHECK(bound <= bounds.limit(i, limit));
    }
  }
  CHECK(most <= 1.001);  // rounded down, not further
}

}  // namespace

TEST(bytes_round_down_and_keep_what_is_below_a_limit) {
  for (const double spread : {1.0, 1e-20, 1e20, 1e-40}) {
    check_bytes<float>(spread);
    check_bytes<double>(spread);
  }
  check_bytes<double>(1e300);
}

TEST(places_within_limits_at_every_level) {
  for (const char* name : kLevels) {
    const simd::Kernels* k = simd::find_level(name);
    if (k == nullptr) continue;
    for (const index n : {0, 1, 63, 64, 65, 200, 1000}) {
      for (const double share : {0.0, 0.02, 0.3, 1.0}) {
        std::vector<unsigned char> bytes, limits;
        for (const double v : uniform(std::size_t(n), unsigned(n))) {
          bytes.push_back(static_cast<unsigned char>(255 * v));
        }
        for (const double v : uniform(std::size_t(n), unsigned(n) + 1)) {
          limits.push_back(v < share ? 255 : static_cast<unsigned char>(10 * v));
        }
        std::vector<std::int32_t> places(std::size_t(n) + 4, -1), want;
        for (index i = 0; i < n; ++i) {
          if (bytes[i] <= limits[i]) want.push_back(std::int32_t(i));
        }
        const index found = k->within(bytes.data(), limits.data(), n, places.data());
        places.resize(std::size_t(found));
        CHECK(places == want);
      }
    }
  }
}

TEST(one_pass_sees_what_is_no_distance_at_every_level) {
  for (const char* name : kLevels) {
    const simd::Kernels* k = simd::find_level(name);
    if (k == nullptr) continue;
    for (const index n : {1, 5, 64, 65, 130}) {
      const std::vector<double> u = uniform(std::size_t(n * n), unsigned(n), 0.5, 1);
      std::vector<float> d(std::size_t(n * n), 0.0f);
      for (index i = 0; i < n; ++i) {
        for (index j = 0; j <= i; ++j) d[i * n + j] = d[j * n + i] = float(u[i * n + j]);
      }
      const auto fine = [&] {
        bool all = true;
        for (index top = 0; top < n; top += 64) all = k->mirrored_f32(d.data(), n, top, {}) && all;
        return all;
      };
      CHECK(fine());
      for (index at = 0; at < n * n; at += 1 + n * n / 150) {
        const float kept = d[at];
        const bool diagonal = at / n == at % n;
        for (const float bad : {-1.0f, std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN(), kept * 1.001f}) {
          d[at] = bad;
          CHECK(fine() == (diagonal && bad == kept * 1.001f));
        }
        d[at] = kept;
      }
      CHECK(fine());
    }
  }
}

// Of distances and of what is none.
template <class T>
void check_bytes_of_a_pass() {
  for (const index n : {1, 5, 64, 65, 130, 200}) {
    std::vector<T> d = converted<T>(uniform(std::size_t(n * n), unsigned(n), 0, 3));
    const std::vector<T> seconds = converted<T>(uniform(std::size_t(n), 1, 0.5, 1));
    for (const bool symmetric : {false, true}) {
      for (index i = 0; symmetric && i < n; ++i) {
        for (index j = 0; j < i; ++j) d[i * n + j] = d[j * n + i];
      }
      if (!symmetric) d[n / 2] = std::numeric_limits<T>::quiet_NaN();
      ByteBounds<T> one(n, seconds), row_by_row(n, seconds);
      Work work(3);
      CHECK(surely_distances(d.data(), n, work, &one) == symmetric);
      for (index i = 0; i < n; ++i) {
        row_by_row.add(i, 0, n, d.data() + i * n);
        if (symmetric) CHECK(std::equal(one.row(i), one.row(i) + n, row_by_row.row(i)));
      }
      if (!symmetric) d[n / 2] = 1;
    }
  }
}

TEST(the_pass_that_checks_makes_the_bytes_of_all_rows) {
  check_bytes_of_a_pass<float>();
  check_bytes_of_a_pass<double>();
}

TEST(tiles_hold_the_distances_of_pairs) {
  const index n = 270, d = 11;
  const std::vector<double> x = uniform(std::size_t(n * d), 3, -1, 1);
  const std::vector<float> narrow = converted<float>(x);
  Work work, team(4);
  std::vector<double> wide(std::size_t(n * n), -1);
  std::vector<float> one(std::size_t(n * n), -1), four(one);
  euclidean_distances(MatrixView<double>{x.data(), n, d}, wide.data(), work);
  euclidean_distances(MatrixView<float>{narrow.data(), n, d}, one.data(), work);
  euclidean_distances(MatrixView<float>{narrow.data(), n, d}, four.data(), team);
  CHECK(one == four);
  for (index i = 0; i < n; ++i) {
    for (index j = 0; j < n; ++j) {
      const double exact = exact_distance(&x[i * d], &x[j * d], d);
      CHECK(wide[i * n + j] == exact);
      CHECK_NEAR(one[i * n + j], exact, 1e-6 * exact + 1e-7);
      CHECK(one[i * n + j] == one[j * n + i]);
    }
  }
  std::vector<float> between(std::size_t(3 * n), -1), some(2);
  distance_rows(MatrixView<float>{narrow.data(), n, d}, {5, 269, 7}, between.data(), work);
  for (const index r : {0, 1, 2}) {
    const index i = r == 0 ? 5 : r == 1 ? 269 : 7;
    CHECK(std::equal(&between[r * n], &between[r * n] + n, &one[i * n]));
    for (index j = 0; j + 1 < n; ++j) {
      const float* rows[] = {&narrow[j * d], &narrow[(j + 1) * d]};
      distances_to(&narrow[i * d], rows, 2, d, some.data());
      CHECK(some[0] == one[i * n + j] && some[1] == one[i * n + j + 1]);
    }
  }
}

// Kinds: plain, two far clusters, duplicates, in a far corner, tiny, huge, some overflowing float's
// squares.
template <class T>
bool bounds_are_close(int kind, index d) {
  const index n = 270;
  std::vector<double> values = uniform(std::size_t(n * d), unsigned(kind), -1, 1);
  for (index i = 0; i < n * d; ++i) {
    double& value = values[std::size_t(i)];
    if (kind == 1) value = (i / d % 2 == 0 ? 1e4 : 0) + value;
    if (kind == 2) value = values[std::size_t(i % (9 * d))];
    if (kind == 3) value += 1e6;
    if (kind == 4) value *= 1e-24;
    if (kind == 5) value *= 1e16;
    if (kind == 6 && i / d % 5 == 0) value *= 1e30;
  }
  const std::vector<T> x = converted<T>(values);
  const MatrixView<T> points{x.data(), n, d};
  Work work;
  std::vector<T> exact(std::size_t(n * n)), one(std::size_t(n * n), -1), four(one);
  euclidean_distances(points, exact.data(), work);
  for (const int threads : {1, 4}) {
    std::vector<T>& all = threads == 1 ? one : four;
    const auto copy = [&](const simd::DistanceTile<T>& tile) {
      for (index r = 0; r < tile.rows; ++r) {
        for (index c = 0; c < tile.columns; ++c) {
          const index i = tile.first + r, j = tile.second + c;
          const T found = tile.d[r * tile.stride + c];
          all[i * n + j] = found;
          if (tile.first != tile.second) all[j * n + i] = found;
        }
      }
    };
    Work team(threads);
    each_bound<T>(points, copy, team);
  }
  for (std::size_t p = 0; p < exact.size(); ++p) {
    if (!(one[p] <= exact[p] && one[p] >= T(0.98) * exact[p])) return false;
  }
  return one == four;
}

TEST(bounds_are_just_below_the_distances) {
  for (const index d : {1, 3, 16, 40, 384, 5000}) {
    for (int kind = 0; kind < 7; ++kind) {
      CHECK(bounds_are_close<float>(kind, d));
      CHECK(bounds_are_close<double>(kind, d));
    }
  }
}

// Kinds: plain, ties, duplicates, outliers, points in a far corner with a few zero weights.
template <class T>
void check_points_without_matrix(int kind, const std::vector<int>& threads) {
  const index n = 1040, d = 3, k = kind == 2 ? 9 : 6;
  std::vector<double> values = uniform(std::size_t(n * d), unsigned(kind), -1, 1);
  std::vector<double> w = uniform(std::size_t(n), 7);
  for (index i = 0; i < n * d; ++i) {
    if (kind == 1) values[i] = std::round(4 * values[i]);
    if (kind == 2) values[i] = values[i % (7 * d)];
    if (kind == 3 && i % 50 == 0) values[i] *= 1e6;
    if (kind == 4) values[i] = 1000 + values[i];
  }
  for (index i = 0; i < n; i += 3) w[i] = kind == 4 ? 0 : kind == 1 ? 1 : w[i];
  const std::vector<T> x = converted<T>(values);
  Work work;
  std::vector<T> all(std::size_t(n * n));
  euclidean_distances(MatrixView<T>{x.data(), n, d}, all.data(), work);
  const KMedoidsProblem<T> problem{{all.data(), n, n}, w.data(), k};
  const std::vector<index> given = first(k);
  KMedoidsOptions options;
  options.n_init = 3;
  for (const auto init : {KMedoidsOptions::Init::random, KMedoidsOptions::Init::given,
                          KMedoidsOptions::Init::greedy}) {
    options.init = init;
    options.given = init == KMedoidsOptions::Init::given ? given.data() : nullptr;
    const KMedoidsSolution want = solve(problem, options, work);
    std::vector<index> labels(std::size_t(n), -1), want_labels(labels);
    assign(problem, want.medoids, work, want_labels.data());
    for (const int some : threads) {
      Work team(some);
      const KMedoidsSolution got =
          solve(KMedoidsPoints<T>{{x.data(), n, d}, w.data(), k}, options, team, labels.data());
      CHECK(got.medoids == want.medoids && labels == want_labels);
      CHECK(got.cost == want.cost && got.swaps == want.swaps && got.passes == want.passes);
    }
  }
}

TEST(points_without_a_matrix_are_searched_as_with_one) {
#ifdef __SANITIZE_THREAD__  // 20 times slower; a race does not wait for a kind of numbers
  const int kinds = 1;
#else
  const int kinds = 5;
#endif
  for (int kind = 0; kind < kinds; ++kind) {
    check_points_without_matrix<float>(kind, {1, 3});
    check_points_without_matrix<double>(kind, {1});
  }
}

TEST(a_sample_stands_for_the_whole_weight) {
  const index n = 1000, draws = 200;
  std::vector<double> w = uniform(std::size_t(n), 5);
  for (index i = 0; i < n; i += 3) w[i] = 0;
  w[500] = 300;
  const double total = std::accumulate(w.begin(), w.end(), 0.0);
  std::vector<double> mean(std::size_t(n), 0.0);
  const int seeds = 400;
  for (int seed = 0; seed < seeds; ++seed) {
    const WeightedSample s = weighted_sample(w.data(), n, draws, 5, std::uint64_t(seed), 0, {3, 6});
    CHECK(std::is_sorted(s.points.begin(), s.points.end()));
    CHECK(std::adjacent_find(s.points.begin(), s.points.end()) == s.points.end());
    CHECK_NEAR(std::accumulate(s.weights.begin(), s.weights.end(), 0.0), total, 1e-9 * total);
    for (const index given : {3, 6}) {
      CHECK(std::binary_search(s.points.begin(), s.points.end(), given));
    }
    for (std::size_t p = 0; p < s.points.size(); ++p) {
      if (w[s.points[p]] == 0) CHECK(s.weights[p] == 0);
      mean[s.points[p]] += s.weights[p] / seeds;
    }
  }
  // Unbiased: blocks of points weigh on average what they weigh, within 5 standard errors.
  for (index from = 0; from < n; from += 100) {
    double want = 0, got = 0;
    for (index i = from; i < from + 100; ++i) {
      want += w[i];
      got += mean[i];
    }
    CHECK_NEAR(got, want, 5 * total / draws * 2 / std::sqrt(double(seeds)));
  }
  const std::vector<double> none(10, 0.0);
  const WeightedSample s = weighted_sample(none.data(), 10, 4, 6, 0, 0, {});
  CHECK(s.points.size() == 6);
  CHECK(*std::max_element(s.weights.begin(), s.weights.end()) == 0);
}

TEST(no_bound_is_above_the_optimum) {
  Work work;
  for (unsigned seed = 0; seed < 120; ++seed) {
    const index n = 4 + seed % 9, k = 1 + seed % 3, m = n - seed % 2;
    const std::vector<double> d =
        seed % 3 == 0 ? exact_distances(n, seed) : uniform(std::size_t(n * n), seed);
    std::vector<double> w = uniform(std::size_t(n), seed + 1);
    if (seed % 4 == 1) w[0] = 1e12;
    if (seed % 4 == 2) w[1] = w[2] = 0;
    const KMedoidsProblem<double> problem{{d.data(), m, n}, w.data(), std::min(k, m)};
    const auto found = swap_search(problem, first(problem.k), Search::eager);
    const double optimum = naive::optimum(problem);
    const Certificate one = certify(problem, found.medoids, found.cost, work);
    CHECK(one.bound <= optimum * (1 + 1e-13) && one.bound >= 0);
    // An optimum that is cheaper than what was found is made of open candidates.
    if (optimum < found.cost * (1 - 1e-9)) {
      KMedoidsProblem<double> rest = problem;
      std::vector<double> rows;
      for (index j = 0; j < m; ++j) {
        if (one.open[j] != 0) rows.insert(rows.end(), &d[j * n], &d[j * n] + n);
      }
      rest.distances = {rows.data(), index(rows.size()) / n, n};
      CHECK_NEAR(naive::optimum(rest), optimum, 1e-12 * optimum);
    }
  }
}

}  // namespace pyfast::test
