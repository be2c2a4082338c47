// Weighted k-medoids: choose k candidates S that minimise sum_i w_i min_{j in S} d_ij.
//
//   best   the best of all (out, in) swaps each time: AMPO's Algorithm 4 and Appendix E.
//   eager  FasterPAM (Schubert and Rousseeuw, "Fast and eager k-medoids clustering", 2021): the
//          best `out` for one `in` at a time, applied at once. O(n^2) a pass instead of O(n^2 k).
//
// Both end in a set that no single swap improves by more than kImprovement of its cost.
#pragma once

#include <vector>

#include "core/run/views.hpp"
#include "core/run/work.hpp"

namespace pyfast {

enum class Search { best, eager };

// Smallest relative gain that counts. Below it, differences are rounding: 1e-12 is Appendix E's
// threshold on unit-scaled distances, and keeps rounding from cycling between equal sets.
constexpr double kImprovement = 1e-12;

// The first `candidates` of the points may become medoids; usually that is all of them.
// Row j of `distances` holds the distances of candidate j to every point.
template <class T>
struct KMedoidsProblem {
  MatrixView<T> distances;  // candidates x points
  const double* weights = nullptr;
  index k = 0;

  index candidates() const { return distances.rows; }
  index points() const { return distances.cols; }
};

struct KMedoidsSolution {
  std::vector<index> medoids;  // ascending
  double cost = 0;
  index swaps = 0;
  index passes = 0;
};

// Local search from the given k distinct candidates. The result does not depend on the threads; a
// call from inside parallel_for passes 1.
template <class T>
KMedoidsSolution swap_search(const KMedoidsProblem<T>& problem, std::vector<index> start,
                             Search search, int threads, Cancel& cancel, Token& token);

// BUILD of Kaufman and Rousseeuw: each time the candidate that lowers the cost most; ties to the
// lowest index. Returned in the order of choice.
template <class T>
std::vector<index> greedy_start(const KMedoidsProblem<T>& problem, Token& token);

struct KMedoidsOptions {
  enum class Init { random, greedy, given };
  Search search = Search::eager;
  Init init = Init::random;
  const index* given = nullptr;  // k candidates, for Init::given
  index n_init = 1;              // starts; those after the first are random
  std::uint64_t seed = 0;
};

// The best of n_init local searches; the first of equals. With threads > 1 the starts share a team;
// a call from inside parallel_for passes threads = 1.
template <class T>
KMedoidsSolution kmedoids(const KMedoidsProblem<T>& problem, const KMedoidsOptions& options,
                          int threads, Cancel& cancel, Token& token);

// labels[i] = position in `medoids` of the nearest candidate there (lowest of equals).
template <class T>
void assign_nearest(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids,
                    Token& token, index* labels);

// The same, and of a medoid its own position.
template <class T>
void assign(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids, Token& token,
            index* labels);

// A medoid that lies on another one still belongs to its own cluster, so that none is empty.
inline void label_medoids(const std::vector<index>& medoids, index* labels) {
  for (std::size_t s = 0; s < medoids.size(); ++s) labels[medoids[s]] = static_cast<index>(s);
}

// The same as kmedoids() on euclidean_distances() of the rows of x, which it calls by their `names`
// if there are any; then assign(), if `labels` is not null. Eager swaps of a thousand points and
// more from random or given starts do without the matrix: they take a byte for each distance and
// k + 1 of its rows.
template <class T>
KMedoidsSolution kmedoids_of_points(MatrixView<T> x, const double* weights, index k,
                                    const KMedoidsOptions& options, int threads, Cancel& cancel,
                                    Token& token, const index* names, index* labels);

}  // namespace pyfast
