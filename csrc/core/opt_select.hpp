// AMPO's Opt-Select (Algorithm 4, Appendix E) for many groups, one after the other in the same
// workspace: distances, weights and search of a small group stay in the first two cache levels,
// and nothing is allocated once the workspace has grown.
#pragma once

#include <vector>

#include "core/group.hpp"
#include "core/small_search.hpp"

namespace pyfast {

struct OptSelectOptions {
  index k = 1;
  bool cover_top = false;
  KMedoidsOptions search;  // its `given` start is not used
};

template <class T>
class OptSelect {
 public:
  explicit OptSelect(const OptSelectOptions& options) : options_(options) {}

  // See opt_select in group.hpp.
  GroupSelection select(MatrixView<T> embeddings, const double* rewards, int threads,
                        Cancel& cancel, Token& token);

 private:
  struct Set {
    std::vector<index> medoids;  // ascending
    double cost = 0;             // exact, of unit-scaled distances
    index swaps = 0;
  };
  struct Found {  // by one start of the filter
    float cost;
    bool certain;  // no swap is left that exact distances could call an improvement
    index swaps;
  };

  index points() const { return static_cast<index>(rows_.size()); }
  double distance(index i, index j) const;
  void read_group(MatrixView<T> embeddings, const double* rewards, index positive);
  void weigh(const double* rewards, index n);
  void draw_start(index run);

  Set solve_small(Token& token);
  Set solve_large(int threads, Cancel& cancel, Token& token);

  void exact_distances(Token& token);
  Set search_exactly(const index* start, Token& token);
  Set solve_exactly(Token& token);

  bool filter_distances(Token& token);
  bool filter_from_dots(float share, index stride);
  Set solve_filtered(Token& token);
  Set settle(double tolerance, Token& token);
  void find_largest(double tolerance);
  double exact_cost(const index* medoids) const;

  OptSelectOptions options_;
  index k_ = 0, candidates_ = 0, d_ = 0;
  std::vector<index> ids_;      // in the group, of the points: the pool, then perhaps the positive
  std::vector<const T*> rows_;  // of the points
  std::vector<double> weights_;
  std::vector<index> start_;

  std::vector<T> gathered_;
  double largest_ = -1;        // distance; negative: not known yet
  std::vector<double> exact_;  // unit-scaled distances, points x stride; empty: not computed yet
  SmallSearch<double> exactly_;

  double error_ = 0;  // relative, of the filter's distances
  std::vector<float> narrow_, dots_, norms_, filter_, filter_weights_, row_largest_;
  SmallSearch<float> filtered_;
  std::vector<Found> found_;
  std::vector<index> found_medoids_;  // k of each start, ascending
  std::vector<const index*> judged_;
};

}  // namespace pyfast
