// The one way into k-medoids: plan() says how a problem is solved, solve() does it.
#pragma once

#include <memory>

#include "core/kmedoids/problem.hpp"
#include "core/run/work.hpp"

namespace pyfast {

// csrc/README.md has the table of what is solved how, and a test holds it to plan().
enum class Way {
  single,    // k = 1: the cost of every candidate
  small,     // SmallSearch on a copy in double, which stays in cache
  matrix,    // State on the matrix of distances
  bytes,     // the same, but ByteBounds are looked at first
  measured,  // ByteBounds of points, and no matrix: what they leave open is measured
  sampled,   // SmallSearch or State on a sample, then exact swaps on all points
};
const char* name_of(Way way);

struct Shape {
  index candidates, points, k;
  bool distances;  // whether they are given
};
Way plan(const Shape& shape, const KMedoidsOptions& options);

// Whether distances as they come are surely finite, >= 0 and symmetric (distance/check.hpp). If
// solve() would look at their bounds first, it is given what the same pass has made: reading the
// matrix takes as long as searching it.
template <class T>
bool check_distances(MatrixView<T> distances, index k, const KMedoidsOptions& options, Work& work,
                     std::unique_ptr<ByteBounds<T>>& bounds);

// The best of n_init local searches, the first of equals: a set that no single swap improves by
// more than kImprovement of its cost, or that no swap with the candidates tried does, if it is
// sampled. Fills labels[i] like assign(), if there are any. The result does not depend on the
// threads. Throws std::range_error if sums or distances overflow.
template <class T>
KMedoidsSolution solve(const KMedoidsProblem<T>& problem, const KMedoidsOptions& options,
                       Work& work, index* labels = nullptr);

// The same as on the points' euclidean_distances(). Memory: with a matrix n^2 of them; without one
// a byte for each and k + 1 rows of them; sampled.hpp has its own.
template <class T>
KMedoidsSolution solve(const KMedoidsPoints<T>& points, const KMedoidsOptions& options, Work& work,
                       index* labels = nullptr);

}  // namespace pyfast
