// The k-medoids problems of a call's groups, from points or from distances laid end to end.
#pragma once

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "bind/args.hpp"
#include "core/distance/euclidean.hpp"
#include "core/distance/exact.hpp"
#include "core/distance/scaling.hpp"
#include "core/kmedoids/kmedoids.hpp"
#include "core/kmedoids/small.hpp"
#include "core/run/memory.hpp"

namespace pyfast::bind {

// What a group is solved with.
struct Means {
  int threads;
  Cancel& cancel;
  Token& token;
};

// Twice the largest distance of point 0 is none less than the largest of all, by the triangle
// inequality; where that is far from double's ends, nothing is. Else all are looked at.
template <class T>
int farthest_in(MatrixView<T> distances, Token& token) {
  const auto exponent = [&](index rows) {
    T largest = 0;
    for (index j = 0; j < rows; ++j) {
      token.spend(distances.cols);
      const T* row = distances.row(j);
      largest = std::max(largest, *std::max_element(row, row + distances.cols));
    }
    return largest > 0 ? std::ilogb(largest) + 2 : 0;
  };
  const int near = exponent(1);
  return near > -50 && near < 900 ? near : exponent(distances.rows);
}

// The true cost of what was found on distances and weights times powers of two.
inline double unscaled(double cost, int exponent) {
  const double value = std::ldexp(cost, -exponent);
  if (!std::isfinite(value)) {
    throw std::range_error("weights times distances overflow float64; scale the weights down");
  }
  return value;
}

// The powers of two that a problem's numbers have been multiplied by.
struct Shifts {
  int distances, weights;
  int costs() const { return distances + weights; }
};

// Calls solve(problem, shifts) for distances that are `shift` times a power of two already.
template <class T, class Solve>
void with_weights(MatrixView<T> distances, int shift, const double* weights, index k, Token& token,
                  Solve&& solve) {
  const ScaledWeights scaled(weights, distances.cols, farthest_in(distances, token));
  solve(KMedoidsProblem<T>{distances, scaled.data(), k}, Shifts{shift, scaled.shift()});
}

// The same for the points of one group. Small groups get exact distances; in large ones they take
// the type of the points.
template <class T, class Solve>
void with_distances(MatrixView<T> x, const double* weights, index k, const Means& means,
                    Solve&& solve) {
  const index n = x.rows;
  if (n <= kSmall) {
    std::vector<double> distances(static_cast<std::size_t>(n * n));
    const int shift = exact_distances(x, distances.data(), means.token);
    with_weights(MatrixView<double>{distances.data(), n, n}, shift, weights, k, means.token, solve);
  } else {
    const LiftedPoints<T> points(x, means.token);
    const BigArray<T> distances = big_array<T>(n * n);
    euclidean_distances(points.view(), distances.get(), means.threads, means.cancel, means.token);
    with_weights(MatrixView<T>{distances.get(), n, n}, points.shift(), weights, k, means.token,
                 solve);
  }
}

// Where the n_b x n_b distances of each group start.
inline std::vector<index> square_starts(const Groups& groups, index total) {
  std::vector<index> starts{0};
  for (index b = 0; b < groups.count; ++b) {
    starts.push_back(starts.back() + groups.size(b) * groups.size(b));
  }
  if (starts.back() != total) throw py::type_error("D: expected sum of n_b^2 distances");
  return starts;
}

}  // namespace pyfast::bind
