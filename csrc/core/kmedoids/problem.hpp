// Weighted k-medoids: choose k candidates S that minimise sum_i w_i min_{j in S} d_ij.
#pragma once

#include <algorithm>
#include <vector>

#include "core/distance/byte_bounds.hpp"
#include "core/run/views.hpp"

namespace pyfast {

//   best   the best of all (out, in) swaps each time: AMPO's Algorithm 4 and Appendix E.
//   eager  FasterPAM (Schubert and Rousseeuw, "Fast and eager k-medoids clustering", 2021): the
//          best `out` for one `in` at a time, applied at once. O(n^2) a pass instead of O(n^2 k).
enum class Search { best, eager };

// The first `candidates` of the points may become medoids; usually that is all of them.
// Row j of `distances` holds the distances of candidate j to every point.
template <class T>
struct KMedoidsProblem {
  MatrixView<T> distances;  // candidates x points
  const double* weights = nullptr;
  index k = 0;
  const ByteBounds<T>* bounds = nullptr;  // of the distances, if there are some already

  index candidates() const { return distances.rows; }
  index points() const { return distances.cols; }
};

// The same of points whose distances are still to be measured. Errors call the rows of x by their
// `names`, if there are any.
template <class T>
struct KMedoidsPoints {
  MatrixView<T> x;
  const double* weights = nullptr;
  index k = 0;
  const index* names = nullptr;
};

struct KMedoidsOptions {
  enum class Init { random, greedy, given };
  Search search = Search::eager;
  Init init = Init::random;
  const index* given = nullptr;  // k candidates, for Init::given
  index n_init = 1;              // starts; those after the first are random
  std::uint64_t seed = 0;
  // More points than that are searched on samples of so many; none, if it is zero.
  index sampled_above = 0, sample_size = 0;
};

struct KMedoidsSolution {
  std::vector<index> medoids;  // ascending
  double cost = 0;
  index swaps = 0;
  index passes = 0;
};

// The rules of both searches, whatever makes their costs.

// Smallest relative gain that counts. Below it, differences are rounding: 1e-12 is Appendix E's
// threshold on unit-scaled distances, and keeps rounding from cycling between equal sets.
constexpr double kImprovement = 1e-12;

template <class T>
bool improves(T cost, T now, T tolerance) {
  return cost < now && now - cost > tolerance * now;
}

// Medoid `slot` gives way to candidate `in`; negative: none does.
struct Swap {
  std::int32_t slot = -1;
  index in = -1;
};

// Appendix E looks at outgoing medoids in ascending order and, for each, at incoming candidates in
// ascending order; the first of equally good swaps wins.
inline bool earlier(const std::vector<index>& medoids, Swap a, Swap b) {
  const index out = medoids[a.slot], other = medoids[b.slot];
  return out < other || (out == other && a.in < b.in);
}

// Candidates in turn, round and round, until none of them has found a swap since the last one.
class Turns {
 public:
  explicit Turns(index candidates) : candidates_(candidates) {}

  bool left() const { return unchanged_ < candidates_; }
  index next() const { return in_; }
  index since_swap() const { return unchanged_; }
  // How many may be looked at in one go, from next() on.
  index at_once() const { return std::min(candidates_ - in_, candidates_ - unchanged_); }
  // So many were looked at, of which none, or the last one, has swapped.
  void looked_at(index count, bool swapped) {
    unchanged_ = swapped ? 1 : unchanged_ + count;
    seen_ += count;
    in_ = in_ + count < candidates_ ? in_ + count : 0;
  }
  index passes() const { return (seen_ + candidates_ - 1) / candidates_; }

 private:
  index candidates_;
  index in_ = 0, unchanged_ = 0, seen_ = 0;
};

}  // namespace pyfast
