// k-medoids of numbers as they come: powers of two, which change no bit, keep distances, weights
// and the sums of their products inside of double where they would leave it (distance/scaling.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "core/distance/euclidean.hpp"
#include "core/distance/exact.hpp"
#include "core/distance/scaling.hpp"
#include "core/kmedoids/kmedoids.hpp"
#include "core/run/memory.hpp"

namespace pyfast {

// Twice the largest distance of point 0 is none less than the largest of all, by the triangle
// inequality; where that is far from double's ends, nothing is. Else all are looked at.
template <class T>
int farthest_in(MatrixView<T> distances, Work& work) {
  const auto exponent = [&](index rows) {
    T largest = 0;
    for (index j = 0; j < rows; ++j) {
      work.spend(distances.cols);
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

// Calls call(problem, shifts) for distances that are `shift` times a power of two already.
template <class T, class Solve>
void with_weights(MatrixView<T> distances, int shift, const double* weights, index k, Work& work,
                  Solve&& call) {
  const ScaledWeights scaled(weights, distances.cols, farthest_in(distances, work));
  call(KMedoidsProblem<T>{distances, scaled.data(), k}, Shifts{shift, scaled.shift()});
}

// The same for the points of one group. Small groups get exact distances; in large ones they take
// the type of the points.
template <class T, class Solve>
void with_distances(MatrixView<T> x, const double* weights, index k, Work& work, Solve&& call) {
  const index n = x.rows;
  if (n <= kSmall) {
    std::vector<double> distances(static_cast<std::size_t>(n * n));
    const int shift = exact_distances(x, distances.data(), work);
    with_weights(MatrixView<double>{distances.data(), n, n}, shift, weights, k, work, call);
  } else {
    const LiftedPoints<T> points(x, work);
    const BigArray<T> distances = big_array<T>(n * n);
    euclidean_distances(points.view(), distances.get(), work);
    with_weights(MatrixView<T>{distances.get(), n, n}, points.shift(), weights, k, work, call);
  }
}

template <class T>
KMedoidsSolution solve_distances(MatrixView<T> distances, const double* weights, index k,
                                 const KMedoidsOptions& options, Work& work, index* labels,
                                 const ByteBounds<T>* bounds = nullptr) {
  KMedoidsSolution solution;
  with_weights(distances, 0, weights, k, work, [&](KMedoidsProblem<T> problem, const Shifts& by) {
    problem.bounds = bounds;
    solution = solve(problem, options, work, labels);
    solution.cost = unscaled(solution.cost, by.costs());
  });
  return solution;
}

// Of distances that nobody has checked; nothing, if they are not surely what they should be.
template <class T>
std::optional<KMedoidsSolution> solve_unchecked(MatrixView<T> distances, const double* weights,
                                                index k, const KMedoidsOptions& options, Work& work,
                                                index* labels) {
  std::unique_ptr<ByteBounds<T>> bounds;
  if (!check_distances(distances, k, options, work, bounds)) return std::nullopt;
  return solve_distances(distances, weights, k, options, work, labels, bounds.get());
}

// Exact distances up to kSmall points, those of the points' own type with more of them.
template <class T>
KMedoidsSolution solve_points(MatrixView<T> x, const double* weights, index k,
                              const KMedoidsOptions& options, Work& work, index* labels) {
  KMedoidsSolution solution;
  if (x.rows <= kSmall) {
    with_distances(x, weights, k, work, [&](const auto& problem, const Shifts& shifts) {
      solution = solve(problem, options, work, labels);
      solution.cost = unscaled(solution.cost, shifts.costs());
    });
    return solution;
  }
  const LiftedPoints<T> points(x, work);
  const ScaledWeights scaled(weights, x.rows, points.farthest());
  solution = solve(KMedoidsPoints<T>{points.view(), scaled.data(), k}, options, work, labels);
  solution.cost = unscaled(solution.cost, points.shift() + scaled.shift());
  return solution;
}

}  // namespace pyfast
