// AMPO's Opt-Select (Algorithm 4, Appendix E) for many groups, one after the other in the same
// workspace: distances, weights and search of a small group stay in the first two cache levels,
// and nothing is allocated once the workspace has grown.
//
// The answer is one of exact distances: double arithmetic on the rows as given. Bounds
// come first, and exact costs for what they leave open.
#pragma once

#include <vector>

#include "core/ampo/group.hpp"
#include "core/distance/exact.hpp"
#include "core/distance/float_bounds.hpp"
#include "core/kmedoids/small.hpp"

namespace pyfast {

struct OptSelectOptions {
  index k = 1;
  bool cover_top = false;
  bool scale_rewards = true;  // by min-max to [0, 1]; or their own exp() is the weight
  KMedoidsOptions search;     // its `given` start is not used
};

template <class T>
class OptSelect final : private ExactCost {
 public:
  explicit OptSelect(const OptSelectOptions& options) : options_(options) {}

  // See opt_select in group.hpp. The embeddings of the `next` group, if there is one, are fetched
  // meanwhile.
  GroupSelection select(MatrixView<T> embeddings, const double* rewards, MatrixView<T> next,
                        Work& work);

 private:
  struct Set {
    std::vector<index> medoids;  // ascending
    double cost = 0;             // exact, of unit-scaled distances
    index swaps = 0;
  };
  struct Found {  // by one start on bounds
    float cost;
    bool certain;  // no swap is left that exact distances could call an improvement
    index swaps;
    double exact;  // cost of unit-scaled distances; negative: not known yet
  };

  void read_group(MatrixView<T> embeddings, const double* rewards, index positive);
  void weigh(const double* rewards, index n);
  const index* start(index run, Work& work);
  Set solve(Work& work);

  // On exact distances: unit_distances.cpp and opt_select.cpp.
  void exact_distances(index stride, Work& work);
  bool measure_exactly(index stride, Work& work);
  void scale_exactly(index stride, double least, Work& work);
  void lift_points(Work& work);
  void prepare_exact_search(Work& work);
  Set search_exactly(const index* start, Work& work);
  Set solve_exactly(Work& work);
  Set solve_any(Work& work);

  // On bounds first: bounded.cpp.
  Set solve_bounded(Work& work);
  bool search_bounded(index run, float tolerance, Work& work);
  Set finish_exactly(double tolerance, Work& work);
  double cost(const index* medoids) override;
  double shortest(index i, const index* medoids, float limit) const;
  void measure_to(index medoid, const std::vector<index>& members);

  OptSelectOptions options_;
  simd::Ahead ahead_;
  index k_ = 0, candidates_ = 0;
  GroupPoints<T> points_;  // the pool, then perhaps the positive
  std::vector<double> weights_;
  std::vector<index> starts_, late_start_, shuffled_;  // k a start, one after the other
  index starts_candidates_ = 0, starts_k_ = 0;         // what starts_ was drawn for

  ExactSquares squares_;
  double largest_ = -1;        // distance; negative: not known yet
  std::vector<double> exact_;  // distances, points x stride; empty: not computed yet
  std::vector<T> lifted_;      // the points, if they were too small to be measured
  double unit_ = 1;            // what the largest of those is, if any is not 0
  bool even_ = true;           // whether float holds the weights, too
  SmallSearch<double> exactly_;

  FloatBounds<T> bounds_;
  std::vector<float> bound_weights_;
  SmallSearch<float> bounded_, assigning_;
  std::vector<Found> found_;
  std::vector<index> found_medoids_;  // k of each start, ascending
  std::vector<const index*> priced_;
  std::vector<double> lengths_;              // of each point, to its nearest medoid
  std::vector<index> measured_to_;           // the medoid of that length; -1: it is not to be kept
  std::vector<std::vector<index>> members_;  // of each medoid, to be measured
  std::vector<const T*> member_rows_;
  std::vector<double> member_squares_;
};

}  // namespace pyfast
