// Swap search with 16 (float) or 8 (double) candidates priced side by side: the searches of
// kmedoids.hpp for up to a few thousand points, best where their distances fit the first two cache
// levels. In double and up to kSmall points it makes the same sums in the same order as the search
// for large problems.
#pragma once

#include <algorithm>
#include <vector>

#include "core/kmedoids/problem.hpp"
#include "core/run/work.hpp"
#include "simd/simd.hpp"

namespace pyfast {

// Tells costs apart that are off by up to half the tolerance.
class ExactCost {
 public:
  // The cost of k medoids, in any order, off by less than kExactCost of it.
  virtual double cost(const index* medoids) = 0;

 protected:
  ~ExactCost() = default;
};
constexpr double kExactCost = 1e-10;

template <class T>
class SmallSearch {
 public:
  static constexpr index kLanes = simd::SwapCosts<T>::lanes;

  static index padded(index count) { return (count + kLanes - 1) / kLanes * kLanes; }

  // by_point[i * stride + j] = by_candidate[j * stride + i]: distance of point i to candidate j;
  // one array serves as both if it is symmetric. Rows are finite, and weights zero, up to
  // padded(candidates) or padded(points) numbers. 2 <= k <= candidates <= points. Nothing is
  // copied.
  void set_problem(const T* by_point, const T* by_candidate, index stride, const T* weights,
                   index points, index candidates, index k);

  // Roundings that a term of a cost meets on its way into it, at most.
  static index roundings(index points) {
    const index in_runs = std::min(points, simd::kSwapRun) + points / simd::kSwapRun;
    return std::max(in_runs, points / kLanes) + 8;
  }

  // From k distinct candidates until no swap improves the cost by more than `tolerance` of it. What
  // the tolerance leaves open is for exact costs to tell, if they can be had and it is not too
  // much.
  void run(const index* start, Search search, T tolerance, Work& work, ExactCost* exact = nullptr);

  // Every point to its nearest of k medoids, of which near(i) is one. Whether the next one is
  // farther by more than `tolerance` of its distance is what clear(i, tolerance) says.
  void assign(const index* medoids) { start_from(medoids); }
  index near(index i) const { return slots_[i]; }
  bool clear(index i, T tolerance) const { return second_[i] > first_[i] + tolerance * first_[i]; }

  const std::vector<index>& medoids() const { return medoids_; }  // by slot, in no order
  T cost() const { return cost_; }
  index swaps() const { return swaps_; }
  index passes() const { return passes_; }
  // Whether costs that are off by up to half the tolerance could have led elsewhere, and no exact
  // cost has told where: in an eager search, to a further swap at the end; in a best one, to
  // another swap on the way as well.
  bool ambiguous() const { return ambiguous_; }

 private:
  void start_from(const index* start);
  // Whether the cost has fallen, as it does for distances >= 0; no others keep a search going.
  bool apply(index slot, index in);
  void find_nearest();
  void sort_by_slot();
  T price(index from, index count);
  void price_block(index block);
  void search_eager(T tolerance, Work& work, ExactCost* exact);
  void pass_eagerly(T tolerance, Work& work);
  void search_best(T tolerance, Work& work, ExactCost* exact);
  bool apply_best_swap(T tolerance, ExactCost* exact);
  bool decide(T limit, ExactCost& exact, Swap& best);

  const simd::Kernels& kernels_ = simd::kernels();
  simd::SwapCosts<T> problem_{};
  simd::Nearest<T> nearest_{};
  index candidates_ = 0;
  std::vector<index> medoids_, priced_medoids_;
  std::vector<Swap> open_;
  std::vector<T> barrier_;         // of each candidate: zero, or infinity for a medoid
  std::vector<T> first_, second_;  // of each point: distance to its nearest and second medoid
  std::vector<std::int32_t> slots_, by_slot_, starts_;  // see simd::SwapCosts
  std::vector<T> costs_, least_;  // of swaps with each candidate, if they are priced
  std::vector<T> runs_;           // work space for the costs
  index priced_ = -1;             // block of candidates
  T cost_ = 0;
  bool ambiguous_ = false;
  index swaps_ = 0, passes_ = 0;
};

}  // namespace pyfast
