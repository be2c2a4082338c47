#include "core/kmedoids/small.hpp"

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
  barrier_.assign(room, std::numeric_limits<T>::infinity());
  first_.resize(room);
  second_.resize(room);
  slots_.resize(room);
  costs_.resize(static_cast<std::size_t>(k * stride));
  runs_.resize(points > simd::kSwapRun ? costs_.size() : 0);
  least_.resize(room);
  problem_ = {by_point,      stride,        points,         k,
              weights,       first_.data(), second_.data(), barrier_.data(),
              slots_.data(), runs_.data(),  nullptr,        nullptr};
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
  std::fill(barrier_.begin(), barrier_.begin() + candidates_, T{0});
  for (const index j : medoids_) barrier_[j] = std::numeric_limits<T>::infinity();
  swaps_ = passes_ = 0;
  ambiguous_ = false;
  find_nearest();
}

// Everything anew: k vector operations a point cost less than telling apart what changed.
template <class T>
bool SmallSearch<T>::apply(index slot, index in) {
  const T before = cost_;
  barrier_[medoids_[slot]] = 0;
  barrier_[in] = std::numeric_limits<T>::infinity();
  medoids_[slot] = in;
  ++swaps_;
  find_nearest();
  return cost_ < before;
}

// Every run apart, from its last point down, so that those of a slot stay in order.
template <class T>
void SmallSearch<T>::sort_by_slot() {
  const index points = problem_.points, k = problem_.k, runs = points / simd::kSwapRun + 1;
  by_slot_.resize(static_cast<std::size_t>(points));
  starts_.assign(static_cast<std::size_t>(runs * (k + 1)), 0);
  std::int32_t* starts = starts_.data();
  for (index i = 0; i < points; i += simd::kSwapRun, starts += k + 1) {
    const index end = std::min(points, i + simd::kSwapRun);
    for (index p = i; p < end; ++p) ++starts[slots_[p]];
    auto last = static_cast<std::int32_t>(i);
    for (index s = 0; s <= k; ++s) starts[s] = last += starts[s];
    for (index p = end; p-- > i;) by_slot_[--starts[slots_[p]]] = static_cast<std::int32_t>(p);
  }
  problem_.by_slot = by_slot_.data();
  problem_.starts = starts_.data();
}

template <>
float SmallSearch<float>::price(index from, index count) {
  return kernels_.swap_costs_f32(problem_, from, count, costs_.data(), least_.data());
}

template <>
double SmallSearch<double>::price(index from, index count) {
  return kernels_.swap_costs_f64(problem_, from, count, costs_.data(), least_.data());
}

template <class T>
void SmallSearch<T>::price_block(index block) {
  if (block != priced_) price(block * kLanes, kLanes);
  priced_ = block;
}

// What a last look leaves open is for exact costs to tell, if they can be had.
template <class T>
void SmallSearch<T>::search_eager(T tolerance, Work& work, ExactCost* exact) {
  passes_ = 0;
  for (bool open = true; open;) {
    pass_eagerly(tolerance, work);
    open = false;
    if (!ambiguous_ || exact == nullptr) return;
    work.spend(candidates_ * problem_.points);
    price(0, padded(candidates_));
    Swap best;
    if (decide(cost_ + tolerance * cost_, *exact, best)) {
      ambiguous_ = false;
      open = best.slot >= 0;
      if (open) apply(best.slot, best.in);
    }
  }
}

template <class T>
void SmallSearch<T>::pass_eagerly(T tolerance, Work& work) {
  Turns turns(candidates_);
  T next_cost = std::numeric_limits<T>::infinity();
  while (turns.left()) {
    const index in = turns.next();
    price_block(in / kLanes);
    const T least = least_[in];
    const bool swaps = improves(least, cost_, tolerance);
    turns.looked_at(1, swaps);
    if (!swaps) {
      next_cost = std::min(next_cost, least);
      continue;
    }
    work.spend(candidates_ * problem_.points);
    index slot = 0;
    while (costs_[slot * problem_.stride + in] != least) ++slot;
    if (!apply(slot, in)) break;
    next_cost = std::numeric_limits<T>::infinity();
  }
  passes_ += turns.passes();
  ambiguous_ = !(next_cost > cost_ + tolerance * cost_);
}

template <class T>
bool SmallSearch<T>::apply_best_swap(T tolerance, ExactCost* exact) {
  Swap best;
  T best_cost = cost_, next_cost = std::numeric_limits<T>::infinity();
  // Costs in float are bounds, whatever the order of their sums; in double, ties may turn on it.
  if (sizeof(T) == sizeof(float) && problem_.points > simd::kSwapRun) sort_by_slot();
  const T least = std::min(cost_, price(0, padded(candidates_)));
  const T limit = least + tolerance * least;
  for (index in = 0; in < candidates_; ++in) {
    if (least_[in] > limit) continue;
    for (std::int32_t slot = 0; slot < problem_.k; ++slot) {
      const T cost = costs_[slot * problem_.stride + in];
      if (cost < best_cost ||
          (cost == best_cost && best.slot >= 0 && earlier(medoids_, {slot, in}, best))) {
        next_cost = best_cost;  // or that of staying
        best = {slot, in};
        best_cost = cost;
      } else {
        next_cost = std::min(next_cost, cost);
      }
    }
  }
  bool open = false, improved = best.slot >= 0 && improves(best_cost, cost_, tolerance);
  if (!(next_cost > best_cost + tolerance * best_cost) || (best.slot >= 0 && !improved)) {
    if (exact != nullptr && decide(limit, *exact, best)) {
      open = improved = best.slot >= 0;
    } else {
      ambiguous_ = true;
    }
  }
  return improved && (apply(best.slot, best.in) || open);
}

// The best of what costs no more than `limit`, staying included. False if there is too much of it,
// or if not even exact costs tell.
template <class T>
bool SmallSearch<T>::decide(T limit, ExactCost& exact, Swap& best) {
  const auto most = static_cast<std::size_t>(std::max<index>(4, problem_.points / 32));
  open_.clear();
  if (cost_ <= limit) open_.push_back({});
  for (index in = 0; in < candidates_; ++in) {
    if (least_[in] > limit) continue;
    for (std::int32_t slot = 0; slot < problem_.k; ++slot) {
      if (costs_[slot * problem_.stride + in] > limit) continue;
      if (open_.size() == most) return false;
      open_.push_back({slot, in});
    }
  }
  double least = std::numeric_limits<double>::infinity(), next = least;
  for (const Swap& swap : open_) {
    priced_medoids_ = medoids_;
    if (swap.slot >= 0) priced_medoids_[swap.slot] = swap.in;
    const double cost = exact.cost(priced_medoids_.data());
    next = std::min(next, std::max(cost, least));
    if (cost < least) best = swap;
    least = std::min(least, cost);
  }
  return next > least + 4 * kExactCost * least;
}

template <class T>
void SmallSearch<T>::search_best(T tolerance, Work& work, ExactCost* exact) {
  do {
    work.spend(candidates_ * problem_.points);
    ++passes_;
  } while (apply_best_swap(tolerance, exact));
}

template <class T>
void SmallSearch<T>::run(const index* start, Search search, T tolerance, Work& work,
                         ExactCost* exact) {
  work.spend(candidates_ * problem_.points);
  start_from(start);
  if (problem_.k == candidates_) return;
  if (search == Search::best) {
    search_best(tolerance, work, exact);
  } else {
    search_eager(tolerance, work, exact);
  }
}

template class SmallSearch<float>;
template class SmallSearch<double>;

}  // namespace pyfast
