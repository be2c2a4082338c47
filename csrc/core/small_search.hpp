// Swap search for groups of up to kSmall points, whose distances fit the first-level cache: the
// searches of kmedoids.hpp with 16 (float) or 8 (double) candidates priced side by side. In double
// it makes the same sums in the same order as the search for large problems.
#pragma once

#include <vector>

#include "core/kmedoids.hpp"
#include "simd/simd.hpp"

namespace pyfast {

constexpr index kSmall = 128;

template <class T>
class SmallSearch {
 public:
  static constexpr index kLanes = simd::SwapCosts<T>::lanes;

  static index padded(index count) { return (count + kLanes - 1) / kLanes * kLanes; }

  // by_point[i * stride + j] = by_candidate[j * stride + i]: distance of point i to candidate j;
  // one array serves as both if it is symmetric. Rows are finite, and weights zero, up to
  // padded(candidates) or padded(points) numbers. 2 <= k <= candidates <= points <= kSmall.
  // Nothing is copied.
  void set_problem(const T* by_point, const T* by_candidate, index stride, const T* weights,
                   index points, index candidates, index k);

  // From k distinct candidates until no swap improves the cost by more than `tolerance` of it.
  void run(const index* start, Search search, T tolerance, Token& token);

  const std::vector<index>& medoids() const { return medoids_; }  // by slot, in no order
  T cost() const { return cost_; }
  index swaps() const { return swaps_; }
  index passes() const { return passes_; }
  // Whether costs that are off by up to half the tolerance could have led elsewhere: in an eager
  // search, to a further swap at the end; in a best one, to another swap on the way as well.
  bool ambiguous() const { return ambiguous_; }

 private:
  void start_from(const index* start);
  void apply(index slot, index in);
  void find_nearest();
  void price(index block);
  void search_eager(T tolerance, Token& token);
  void search_best(T tolerance, Token& token);
  bool apply_best_swap(T tolerance);
  bool earlier(index slot, index in, index than_slot, index than_in) const;

  const simd::Kernels& kernels_ = simd::kernels();
  simd::SwapCosts<T> problem_{};
  simd::Nearest<T> nearest_{};
  index candidates_ = 0;
  std::vector<index> medoids_;
  std::vector<char> is_medoid_;
  std::vector<T> first_, second_;  // of each point: distance to its nearest and second medoid
  std::vector<std::int32_t> slots_;
  std::vector<T> costs_, least_;  // of the block of candidates that was priced last
  index priced_ = -1;
  T cost_ = 0;
  bool ambiguous_ = false;
  index swaps_ = 0, passes_ = 0;
};

}  // namespace pyfast
