#include "core/small_search.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace pyfast {

template <class T>
void SmallSearch<T>::set_problem(const T* by_point, const T* by_candidate, index stride,
                                 const T* weights, index points, index candidates, index k) {
  candidates_ = candidates;
  const auto room = static_cast<std::size_t>(padded(points));
  medoids_.resize(static_cast<std::size_t>(k));
  is_medoid_.resize(static_cast<std::size_t>(candidates));
  first_.resize(room);
  second_.resize(room);
  slots_.resize(room);
  costs_.resize(static_cast<std::size_t>(k * kLanes));
  least_.resize(static_cast<std::size_t>(kLanes));
  problem_ = {by_point, stride, points, k, weights, first_.data(), second_.data(), slots_.data()};
  nearest_ = {by_candidate,  stride,         points,       k, medoids_.data(), weights,
              first_.data(), second_.data(), slots_.data()};
}

template <>
void SmallSearch<float>::find_nearest() {
  const simd::NearestSums<float> sums = kernels_.nearest_f32(nearest_);
  cost_ = sums.first;
  priced_ = -1;
}

template <>
void SmallSearch<double>::find_nearest() {
  const simd::NearestSums<double> sums = kernels_.nearest_f64(nearest_);
  if (!std::isfinite(sums.second)) {  // it bounds every other sum of the search
    throw std::range_error("weights times distances overflow float64; scale the weights down");
  }
  cost_ = sums.first;
  priced_ = -1;
}

template <class T>
void SmallSearch<T>::start_from(const index* start) {
  std::copy(start, start + problem_.k, medoids_.begin());
  std::fill(is_medoid_.begin(), is_medoid_.end(), 0);
  for (const index j : medoids_) is_medoid_[j] = 1;
  swaps_ = passes_ = 0;
  ambiguous_ = false;
  find_nearest();
}

// Everything anew: k vector operations a point cost less than telling apart what changed.
template <class T>
void SmallSearch<T>::apply(index slot, index in) {
  is_medoid_[medoids_[slot]] = 0;
  is_medoid_[in] = 1;
  medoids_[slot] = in;
  ++swaps_;
  find_nearest();
}

template <>
void SmallSearch<float>::price(index block) {
  if (block == priced_) return;
  simd::SwapCosts<float> part = problem_;
  part.to += block * kLanes;
  kernels_.swap_costs_f32(part, costs_.data(), least_.data());
  priced_ = block;
}

template <>
void SmallSearch<double>::price(index block) {
  if (block == priced_) return;
  simd::SwapCosts<double> part = problem_;
  part.to += block * kLanes;
  kernels_.swap_costs_f64(part, costs_.data(), least_.data());
  priced_ = block;
}

// Candidates in turn, round and round, until none of them has found a swap since the last one.
template <class T>
void SmallSearch<T>::search_eager(T tolerance, Token& token) {
  index looked_at = 0;
  T next_cost = std::numeric_limits<T>::infinity();
  for (index in = 0, unchanged = 0; unchanged < candidates_;
       in = in + 1 < candidates_ ? in + 1 : 0, ++unchanged, ++looked_at) {
    if (is_medoid_[in]) continue;
    const index lane = in % kLanes;
    price(in / kLanes);
    const T least = least_[lane];
    if (cost_ - least > tolerance * cost_) {
      token.spend(candidates_ * problem_.points);
      index slot = 0;
      while (costs_[slot * kLanes + lane] != least) ++slot;
      apply(slot, in);
      unchanged = 0;
      next_cost = std::numeric_limits<T>::infinity();
    } else {
      next_cost = std::min(next_cost, least);
    }
  }
  passes_ = (looked_at + candidates_ - 1) / candidates_;
  ambiguous_ = !(next_cost > cost_ + tolerance * cost_);
}

// Appendix E looks at outgoing medoids in ascending order and, for each, at incoming candidates in
// ascending order; the first of equally good swaps wins.
template <class T>
bool SmallSearch<T>::earlier(index slot, index in, index than_slot, index than_in) const {
  const index out = medoids_[slot], than_out = medoids_[than_slot];
  return out < than_out || (out == than_out && in < than_in);
}

template <class T>
bool SmallSearch<T>::apply_best_swap(T tolerance) {
  index best_slot = -1, best_in = -1;
  T best_cost = cost_, next_cost = std::numeric_limits<T>::infinity();
  for (index in = 0; in < candidates_; ++in) {
    if (is_medoid_[in]) continue;
    const index lane = in % kLanes;
    price(in / kLanes);
    if (least_[lane] > best_cost + tolerance * best_cost) continue;
    for (index slot = 0; slot < problem_.k; ++slot) {
      const T cost = costs_[slot * kLanes + lane];
      if (cost < best_cost ||
          (cost == best_cost && best_slot >= 0 && earlier(slot, in, best_slot, best_in))) {
        next_cost = best_cost;  // or that of staying
        best_slot = slot;
        best_in = in;
        best_cost = cost;
      } else {
        next_cost = std::min(next_cost, cost);
      }
    }
  }
  ambiguous_ |= !(next_cost > best_cost + tolerance * best_cost);
  const bool improves = cost_ - best_cost > tolerance * cost_;
  if (improves) apply(best_slot, best_in);
  return improves;
}

template <class T>
void SmallSearch<T>::search_best(T tolerance, Token& token) {
  do {
    token.spend(candidates_ * problem_.points);
    ++passes_;
  } while (apply_best_swap(tolerance));
}

template <class T>
void SmallSearch<T>::run(const index* start, Search search, T tolerance, Token& token) {
  token.spend(candidates_ * problem_.points);
  start_from(start);
  if (problem_.k == candidates_) return;
  if (search == Search::best) {
    search_best(tolerance, token);
  } else {
    search_eager(tolerance, token);
  }
}

template class SmallSearch<float>;
template class SmallSearch<double>;

}  // namespace pyfast
