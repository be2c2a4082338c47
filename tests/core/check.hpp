// The smallest test runner that serves: TEST(name) { CHECK(...); CHECK_NEAR(...); CHECK_THROWS }.
// Every failed check is printed; the program exits with their number and closes with
// "N passed, N failed".
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <vector>

#include "core/kmedoids/kmedoids.hpp"
#include "core/run/random.hpp"
#include "core/run/views.hpp"

namespace pyfast::test {

struct Case {
  const char* name;
  void (*run)();
};

std::vector<Case>& cases();
void fail(const char* file, int line, const char* what);

struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline std::vector<double> uniform(std::size_t count, unsigned seed, double low = 0,
                                   double high = 1) {
  std::mt19937_64 generator(seed);
  std::uniform_real_distribution<double> draw(low, high);
  std::vector<double> values(count);
  for (double& value : values) value = draw(generator);
  return values;
}

// Small whole numbers and halves: ties everywhere, and all sums exact.
inline std::vector<double> exact_distances(index n, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::vector<double> d(static_cast<std::size_t>(n * n), 0);
  for (index i = 0; i < n; ++i) {
    for (index j = 0; j < i; ++j) d[i * n + j] = d[j * n + i] = double(generator() % 5) / 2;
  }
  return d;
}

inline std::vector<index> drawn(index n, index k, std::uint64_t seed, std::uint32_t stream) {
  Work work;
  return random_subset(n, k, seed, stream, work);
}

// One search from a given start.
template <class T>
KMedoidsSolution swap_search(const KMedoidsProblem<T>& problem, const std::vector<index>& start,
                             Search search) {
  KMedoidsOptions options;
  options.search = search;
  options.init = KMedoidsOptions::Init::given;
  options.given = start.data();
  Work work;
  return solve(problem, options, work);
}

inline std::vector<index> first(index k) {
  std::vector<index> out;
  for (index i = 0; i < k; ++i) out.push_back(i);
  return out;
}

}  // namespace pyfast::test

#define TEST(name)                                                  \
  static void name();                                               \
  static const pyfast::test::Register register_##name{#name, name}; \
  static void name()

#define CHECK(condition) \
  ((condition) ? (void)0 : pyfast::test::fail(__FILE__, __LINE__, #condition))

#define CHECK_NEAR(a, b, tolerance) CHECK(std::abs((a) - (b)) <= (tolerance))

#define CHECK_THROWS(expression, type) \
  do {                                 \
    bool threw = false;                \
    try {                              \
      (void)(expression);              \
    } catch (const type&) {            \
      threw = true;                    \
    }                                  \
    CHECK(threw && "throws " #type);   \
  } while (false)
