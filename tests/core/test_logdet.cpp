#include <algorithm>
#include <limits>
#include <set>
#include <stdexcept>

#include "check.hpp"
#include "core/logdet/logdet.hpp"
#include "core/logdet/mass_dpo.hpp"
#include "core/logdet/wide.hpp"
#include "core/naive/logdet.hpp"

namespace pyfast::test {

namespace {

struct Found {
  std::vector<index> picks;
  std::vector<double> gains, vectors, factor;
  double logdet = 0;
};

Found solve(const Candidates& candidates, index k, double gamma = 0.1, double scale = 1,
            const Found* before = nullptr, int threads = 1) {
  LogDetProblem problem{&candidates, k, gamma, scale, {}};
  if (before != nullptr) {
    problem.before = {before->vectors.data(), before->factor.data(),
                      static_cast<index>(before->vectors.size()) / candidates.dims(),
                      before->logdet};
  }
  const index total = problem.before.count + k;
  Found found;
  found.picks.resize(std::size_t(k));
  found.gains.resize(std::size_t(k));
  found.vectors.resize(std::size_t(k * candidates.dims()));
  found.factor.resize(std::size_t(total * total));
  Work work(threads);
  LogDetGreedy greedy;
  found.logdet = greedy.solve(
      problem, {found.picks.data(), found.gains.data(), found.vectors.data(), found.factor.data()},
      work);
  if (before != nullptr) {
    found.vectors.insert(found.vectors.begin(), before->vectors.begin(), before->vectors.end());
  }
  return found;
}

template <class T>
Found solve_rows(const std::vector<T>& v, index n, index k, double gamma = 0.1, double scale = 1,
                 int threads = 1) {
  const RowCandidates<T> candidates({v.data(), n, static_cast<index>(v.size()) / n});
  return solve(candidates, k, gamma, scale, nullptr, threads);
}

}  // namespace

TEST(logdet_follows_sherman_morrison) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const index n = 3 + seed % 40, d = 1 + (seed * 7) % 50, k = 1 + seed % std::min<index>(n, 12);
    const std::vector<double> v = uniform(std::size_t(n * d), seed, -1, 1);
    const double gamma = seed % 3 == 0 ? 1e-4 : 0.5, scale = seed % 2 == 0 ? 1 : 0.01;
    const Found found = solve_rows(v, n, k, gamma, scale);
    const naive::LogDetPicks expected = naive::logdet({v.data(), n, d}, k, gamma, scale);
    CHECK(found.picks == expected.picks);
    CHECK_NEAR(found.logdet, expected.logdet, 1e-9 * (1 + std::abs(expected.logdet)));
    CHECK(std::is_sorted(found.gains.rbegin(), found.gains.rend()));
  }
}

TEST(logdet_ties_go_to_the_lowest_index_and_picks_are_distinct) {
  const std::vector<double> equal(20 * 3, 1.0);
  CHECK((solve_rows(equal, 20, 20).picks == first(20)));
  CHECK((solve_rows(std::vector<double>(20, 0.0), 10, 10).picks == first(10)));
  // Orthogonal axes, each twice: the first ones, then the second ones.
  std::vector<double> axes(8 * 4, 0.0);
  for (index i = 0; i < 8; ++i) axes[std::size_t(i * 4 + i % 4)] = i % 3 == 0 ? -2 : 2;
  CHECK((solve_rows(axes, 8, 8).picks == first(8)));
  // More picks than the rank.
  const std::vector<double> line = uniform(30, 3, -1, 1);
  const Found found = solve_rows(line, 30, 30, 1e-3);
  CHECK(std::set<index>(found.picks.begin(), found.picks.end()).size() == 30);
}

// The float rows are many enough for bounds in float, the double rows never are.
TEST(logdet_gives_the_same_bits_for_float_rows_and_any_threads) {
  std::vector<float> narrow;
  for (const double x : uniform(400 * 700, 5, -1, 1)) narrow.push_back(float(x));
  for (index i = 0; i < 700; ++i) narrow[std::size_t(37 * 700 + i)] = narrow[std::size_t(i)];
  const std::vector<double> wide(narrow.begin(), narrow.end());
  const Found expected = solve_rows(wide, 400, 40);
  for (const int threads : {1, 2, 5}) {
    for (const Found& found : {solve_rows(narrow, 400, 40, 0.1, 1, threads),
                               solve_rows(wide, 400, 40, 0.1, 1, threads)}) {
      CHECK(found.picks == expected.picks && found.gains == expected.gains);
      CHECK(found.logdet == expected.logdet && found.factor == expected.factor);
    }
  }
}

// From 2^13 numbers on float rows are bounded in float; blocks are of 16 rows, strides of 12 picks,
// and tiles and pieces of the kernels of 4 rows, 3 columns, 256 and 512 numbers.
TEST(logdet_gives_the_same_bits_just_around_every_threshold) {
  const index sizes[][3] = {{8191, 1, 5},  {8192, 1, 5},  {64, 127, 30}, {64, 128, 30},
                            {64, 129, 30}, {16, 512, 16}, {17, 513, 14}, {15, 768, 13},
                            {33, 257, 12}, {20, 576, 3},  {5, 4097, 5},  {1, 9000, 1}};
  for (const auto& [n, d, k] : sizes) {
    for (const bool unit : {false, true}) {
      std::vector<float> narrow;
      for (const double x : uniform(std::size_t(n * d), unsigned(n + d), -1, 1)) {
        narrow.push_back(float(x));
      }
      for (index i = 0; i < n && unit; ++i) {
        double length = 0;
        for (index t = 0; t < d; ++t) length += narrow[i * d + t] * double(narrow[i * d + t]);
        for (index t = 0; t < d; ++t) narrow[i * d + t] /= float(std::sqrt(length));
      }
      const std::vector<double> wide(narrow.begin(), narrow.end());
      for (const double gamma : {10.0, 0.1, 1e-6}) {
        const Found expected = solve_rows(wide, n, k, gamma),
                    found = solve_rows(narrow, n, k, gamma);
        CHECK(found.picks == expected.picks && found.gains == expected.gains);
        CHECK(found.logdet == expected.logdet && found.factor == expected.factor);
        CHECK(found.vectors == expected.vectors);
        if (d <= 129 && n <= 64 && gamma > 1e-3) {
          const naive::LogDetPicks plain = naive::logdet({wide.data(), n, d}, k, gamma, 1);
          CHECK(found.picks == plain.picks);
          CHECK_NEAR(found.logdet, plain.logdet, 1e-9 * (1 + std::abs(plain.logdet)));
        }
      }
    }
  }
}

// All candidates have 40 vectors to catch up with at first: work enough for several threads.
TEST(logdet_gives_the_same_bits_from_threads_that_share_one_problem) {
  const index n = 1200, d = 900;
  const Found before = solve_rows(uniform(std::size_t(40 * d), 3, -1, 1), 40, 40);
  const std::vector<double> numbers = uniform(std::size_t(n * d), 4, -1, 1);
  const std::vector<float> narrow(numbers.begin(), numbers.end());
  const std::vector<double> wide(narrow.begin(), narrow.end());
  const RowCandidates<float> of_floats({narrow.data(), n, d});
  const RowCandidates<double> of_doubles({wide.data(), n, d});
  const Found expected = solve(of_doubles, 15, 0.1, 1, &before);
  for (const int threads : {1, 2, 5}) {
    for (const Found& found : {solve(of_floats, 15, 0.1, 1, &before, threads),
                               solve(of_doubles, 15, 0.1, 1, &before, threads)}) {
      CHECK(found.picks == expected.picks && found.gains == expected.gains);
      CHECK(found.logdet == expected.logdet && found.factor == expected.factor);
    }
  }
}

// One solver for problems large and small, bounded in float and not, of floats and doubles.
TEST(logdet_keeps_nothing_of_the_problem_before) {
  LogDetGreedy greedy;
  Work work;
  for (const index n : {40, 3, 25, 100, 7}) {
    const index d = n == 25 ? 9 : 300, k = std::min<index>(n, 20);
    const std::vector<double> wide = uniform(std::size_t(n * d), unsigned(n), -1, 1);
    const std::vector<float> narrow(wide.begin(), wide.end());
    const RowCandidates<float> of_floats({narrow.data(), n, d});
    const RowCandidates<double> of_doubles({wide.data(), n, d});
    for (const Candidates* candidates : {static_cast<const Candidates*>(&of_floats),
                                         static_cast<const Candidates*>(&of_doubles)}) {
      std::vector<index> picks(static_cast<std::size_t>(k));
      std::vector<double> gains(static_cast<std::size_t>(k));
      const double logdet = greedy.solve({candidates, k, 0.1, 1, {}},
                                         {picks.data(), gains.data(), nullptr, nullptr}, work);
      const Found expected = solve(*candidates, k);
      CHECK(picks == expected.picks && gains == expected.gains && logdet == expected.logdet);
    }
  }
}

// More picks than dimensions: from the d-th on by the information matrix. Kinds: plain, unit rows,
// rows of few directions, of very different lengths, duplicates.
TEST(logdet_of_more_picks_than_dimensions_follows_sherman_morrison) {
  for (int kind = 0; kind < 5; ++kind) {
    for (const index d : {1, 2, 5, 17, 40}) {
      const index n = 260, k = 90 + d;
      std::vector<double> v = uniform(std::size_t(n * d), unsigned(d + kind), -1, 1);
      for (index i = 0; i < n; ++i) {
        double length = 0;
        for (index t = 0; t < d; ++t) length += v[i * d + t] * v[i * d + t];
        for (index t = 0; t < d; ++t) {
          double& x = v[i * d + t];
          if (kind == 1) x /= std::sqrt(length);
          if (kind == 2) x = t < 3 ? x : 0;
          if (kind == 3) x *= std::exp2(double(i % 12));
          if (kind == 4) x = v[(i % 100) * d + t];
          x = double(float(x));
        }
      }
      const std::vector<float> narrow(v.begin(), v.end());
      for (const double gamma : {10.0, 0.1}) {
        const naive::LogDetPicks expected = naive::logdet({v.data(), n, d}, k, gamma, 1);
        const Found found = solve_rows(v, n, k, gamma);
        CHECK(found.picks == expected.picks);
        CHECK_NEAR(found.logdet, expected.logdet, 1e-9 * (1 + std::abs(expected.logdet)));
        for (const int threads : {1, 3}) {
          const Found same = solve_rows(narrow, n, k, gamma, 1, threads);
          CHECK(same.picks == found.picks && same.gains == found.gains);
          CHECK(same.logdet == found.logdet && same.factor == found.factor);
        }
      }
    }
  }
}

// In two or three calls: the matrix of a state is made anew, in the order of choice.
TEST(logdet_of_more_picks_than_dimensions_carries_on) {
  const index n = 150, d = 12;
  const std::vector<double> v = uniform(std::size_t(n * d), 21, -1, 1);
  const Found whole = solve_rows(v, n, 60);
  Found part = solve_rows(v, n, 7);
  std::vector<index> left = first(n);
  for (const index more : {20, 33}) {
    const std::size_t before = part.vectors.size() / std::size_t(d);
    for (std::size_t s = 0; s < part.picks.size(); ++s) left[std::size_t(part.picks[s])] = -1;
    left.erase(std::remove(left.begin(), left.end(), -1), left.end());
    std::vector<double> rest;
    for (const index i : left) rest.insert(rest.end(), &v[i * d], &v[i * d] + d);
    const RowCandidates<double> candidates({rest.data(), index(left.size()), d});
    const Found next = solve(candidates, more, 0.1, 1, &part);
    for (std::size_t s = 0; s < next.picks.size(); ++s) {
      CHECK(left[std::size_t(next.picks[s])] == whole.picks[s + before]);
      CHECK(next.gains[s] == whole.gains[s + before]);
    }
    part = next;
  }
  CHECK(part.logdet == whole.logdet && part.factor == whole.factor);
}

// Where doubles do not tell: a ridge so small that what is left beside it has no digits.
TEST(logdet_of_more_picks_than_dimensions_takes_more_digits_where_it_must) {
  const index n = 60, d = 4, k = 20;
  std::vector<double> v = uniform(std::size_t(n * d), 5, -1, 1);
  for (index i = 0; i < n; ++i) v[std::size_t(i * d + 3)] *= 1e-9;  // a direction all but lost
  const Found found = solve_rows(v, n, k, 1e-12);
  const std::vector<float> narrow(v.begin(), v.end());
  const std::vector<double> wide(narrow.begin(), narrow.end());
  const Found a = solve_rows(narrow, n, k, 1e-12), b = solve_rows(wide, n, k, 1e-12);
  CHECK(a.picks == b.picks && a.gains == b.gains);
  CHECK(std::is_sorted(found.gains.rbegin(), found.gains.rend()));
  CHECK(std::set<index>(found.picks.begin(), found.picks.end()).size() == std::size_t(k));
}

TEST(logdet_carried_on_equals_one_run) {
  const index n = 50, d = 33;
  const std::vector<double> v = uniform(std::size_t(n * d), 9, -1, 1);
  const Found whole = solve_rows(v, n, 20);
  const Found part = solve_rows(v, n, 8);
  std::vector<index> left;
  std::vector<double> rest;
  for (index i = 0; i < n; ++i) {
    if (std::count(part.picks.begin(), part.picks.end(), i) > 0) continue;
    left.push_back(i);
    rest.insert(rest.end(), v.begin() + i * d, v.begin() + (i + 1) * d);
  }
  const RowCandidates<double> candidates({rest.data(), n - 8, d});
  const Found more = solve(candidates, 12, 0.1, 1, &part);
  for (std::size_t s = 0; s < 12; ++s) {
    CHECK(left[std::size_t(more.picks[s])] == whole.picks[s + 8]);
    CHECK(more.gains[s] == whole.gains[s + 8]);
  }
  CHECK(more.logdet == whole.logdet && more.factor == whole.factor);
}

TEST(logdet_of_pairs_equals_logdet_of_their_differences) {
  const index rows = 30, d = 45, n = 60;
  const std::vector<double> x = uniform(std::size_t(rows * d), 2, -1, 1);
  const std::vector<double> of_rows = uniform(std::size_t(rows), 3, 0.5, 2);
  const std::vector<double> of_pairs = uniform(std::size_t(n), 4, 0.5, 2);
  std::vector<index> pairs;
  std::vector<double> v;
  for (index i = 0; i < n; ++i) {
    const std::size_t a = std::size_t(i % rows), b = std::size_t((i * 7 + 3) % rows);
    pairs.insert(pairs.end(), {index(a), index(b)});
    for (std::size_t t = 0; t < std::size_t(d); ++t) {
      v.push_back(of_pairs[std::size_t(i)] * (of_rows[a] * x[a * std::size_t(d) + t] -
                                              of_rows[b] * x[b * std::size_t(d) + t]));
    }
  }
  std::vector<double> lengths(static_cast<std::size_t>(rows));
  squared_norms({x.data(), rows, d}, lengths.data());
  for (double& length : lengths) length = std::sqrt(length);
  const PairCandidates<double> candidates({x.data(), rows, d}, pairs.data(), n, of_rows.data(),
                                          of_pairs.data(), lengths.data());
  const Found found = solve(candidates, 25), expected = solve_rows(v, n, 25);
  CHECK(found.picks == expected.picks);
  CHECK_NEAR(found.logdet, expected.logdet, 1e-10 * std::abs(expected.logdet));
}

TEST(wide_numbers_lose_nothing_that_fits) {
  using Number = Wide<3>;
  for (int power : {-300, -70, -1, 0, 1, 63, 64, 65, 100, 130}) {
    const Number large(std::ldexp(1.5, power)), small(-1.25);
    CHECK(((large + small) - large).value() == -1.25);
    const Number squares = (large - small) * (large + small) - large * large;
    CHECK(power > 90 || squares.value() == -1.25 * 1.25);
    CHECK((large - large).is_zero() && (large + Number()).value() == large.value());
  }
  // Around every power of two the digits of a third and its inverse.
  for (int power = -70; power < 70; ++power) {
    const Number third = Number(std::ldexp(3.0, power)).inverse();
    const Number rest = third * Number(std::ldexp(3.0, power)) - Number(1.0);
    CHECK(std::abs(rest.value()) < 0x1.0p-180);
    CHECK_NEAR(third.value() * std::ldexp(1.0, power), 1.0 / 3, 1e-16);
  }
  CHECK(Number(0x1.0p-1074).value() == 0x1.0p-1074 && Number(-0.0).is_zero());
  CHECK((Number(1e308) * Number(1e308)).value() == std::numeric_limits<double>::infinity());
  CHECK((Number(1e-300) * Number(1e-300) * Number(1e300)).value() == 1e-300);
}

TEST(wide_dots_keep_what_doubles_cancel) {
  const std::vector<double> x{1e200, 3, -1e200, 1e-60}, y{1e-40, 5, 1e-40, 1e20};
  const auto dot_of = [](const std::vector<double>& a, const std::vector<double>& b) {
    const auto d = static_cast<index>(a.size());
    return dot<18>(Doubles(a.data(), d), Doubles(b.data(), d)).value();
  };
  CHECK(dot_of(x, y) == 15);
  CHECK(dot_of({1e-200, 0, 2e-200}, {0, 1, 0}) == 0);
  CHECK(dot_of({0x1.0p-1074, 1}, {0x1.0p1000, -0x1.0p-75}) == 0x1.0p-74 - 0x1.0p-75);
}

TEST(logdet_tells_nearly_parallel_rows_apart) {
  for (const double offset : {1.7e3, 1.7e6, 1.7e9, 1.7e12}) {
    const Found found =
        solve_rows(std::vector<double>{offset, 0, offset, 1, offset, 2, offset, -3}, 4, 3, 0.1, 1);
    const double squared = offset * offset;
    CHECK(found.picks[0] == (offset < 1e5 ? 3 : 0) && found.picks[1] == (offset < 1e5 ? 2 : 3));
    // det(gamma I + sum v v^T) = gamma^2 + gamma (|v|^2 + |w|^2) + area^2
    const double a = offset < 1e5 ? 9 : 0, b = offset < 1e5 ? 4 : 9, area = offset < 1e5 ? 5 : 3;
    const double determinant = 0.01 + 0.1 * (2 * squared + a + b) + area * area * squared;
    CHECK_NEAR(2 * std::log(0.1) + found.gains[0] + found.gains[1], std::log(determinant), 1e-12);
  }
}

TEST(logdet_refuses_lengths_that_overflow) {
  CHECK_THROWS(solve_rows(std::vector<double>{1, 1e200, 0, 1}, 2, 1), std::range_error);
  CHECK_THROWS(solve_rows(std::vector<float>{1, std::numeric_limits<float>::infinity()}, 2, 1),
               std::range_error);
}

TEST(mass_dpo_prefers_probable_and_spread_negatives) {
  // The preferred response is 1; negatives 0 and 2 are alike, 3 stands apart.
  const std::vector<double> f{1, 0, 0, 0, 1.1, 0, 0, 2};
  const std::vector<double> zero(4, 0.0);
  MassDpoOptions options;
  options.k = 2;
  Work work;
  std::vector<index> picks(2);
  std::vector<double> gains(2);
  MassDpo solver;
  solver.solve(MatrixView<double>{f.data(), 4, 2}, zero.data(), zero.data(), 1, options,
               {picks.data(), gains.data(), nullptr, nullptr}, work);
  CHECK(picks[0] == 3 && picks[1] == 2);
  // With all weight on response 2, the centre sits on it, and little is left of the others.
  const std::vector<double> policy{0, 0, 400, 0};
  solver.solve(MatrixView<double>{f.data(), 4, 2}, policy.data(), zero.data(), 1, options,
               {picks.data(), gains.data(), nullptr, nullptr}, work);
  CHECK(gains[0] < 1e-12);
}

}  // namespace pyfast::test
