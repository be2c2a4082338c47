// Opt-Select with bounds first: the search runs on float distances, whose error is known, and what
// that error leaves open - a swap that may or may not improve, sets that cost nearly the same - is
// priced exactly. The answer is that of exact distances alone.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/ampo/opt_select.hpp"
#include "simd/simd.hpp"

namespace pyfast {

// Exact, but not of unit-scaled distances: of each point, that to the medoid that the bounds call
// nearest, or to several that they cannot tell apart. Sets that are priced one after the other
// share most medoids, so a distance is kept until its point has another nearest one.
template <class T>
double OptSelect<T>::cost(const index* medoids) {
  const index m = points_.count();
  const auto close = static_cast<float>(3 * bounds_.error());
  assigning_.assign(medoids);
  members_.resize(static_cast<std::size_t>(k_));
  for (std::vector<index>& members : members_) members.clear();
  for (index i = 0; i < m; ++i) {
    const index s = assigning_.near(i), medoid = medoids[s];
    if (!assigning_.clear(i, close)) {
      lengths_[i] = shortest(i, medoids, bounds_.row(i)[medoid] * (1 + close));
      measured_to_[i] = -1;
    } else if (measured_to_[i] != medoid) {
      members_[s].push_back(i);
    }
  }
  for (index s = 0; s < k_; ++s) measure_to(medoids[s], members_[s]);
  double sum = 0;
  for (index i = 0; i < m; ++i) sum += weights_[i] * lengths_[i];
  return sum;
}

// Exactly, from point i to those medoids that are no farther than `limit` by the bounds.
template <class T>
double OptSelect<T>::shortest(index i, const index* medoids, float limit) const {
  const float* row = bounds_.row(i);
  double least = std::numeric_limits<double>::infinity();
  for (index s = 0; s < k_; ++s) {
    if (medoids[s] == i) return 0;
    if (row[medoids[s]] <= limit) least = std::min(least, points_.distance(i, medoids[s]));
  }
  return least;
}

// Exactly, of the members to one medoid.
template <class T>
void OptSelect<T>::measure_to(index medoid, const std::vector<index>& members) {
  const auto count = static_cast<index>(members.size());
  const T* to = points_.rows[medoid];
  member_rows_.clear();
  for (const index i : members) member_rows_.push_back(points_.rows[i]);
  member_squares_.resize(members.size());
  double* squares = member_squares_.data();
  if constexpr (sizeof(T) == sizeof(float)) {
    simd::kernels().squares_to_wide(member_rows_.data(), count, to, points_.d, squares);
  } else {
    simd::kernels().squares_to_f64(member_rows_.data(), count, to, points_.d, squares);
  }
  for (index q = 0; q < count; ++q) {
    lengths_[members[q]] = std::sqrt(squares[q]);
    measured_to_[members[q]] = medoid;
  }
}

// Sets whose costs the bounds cannot tell from their best, in the order of their starts, are priced
// exactly; so is every swap from them that it cannot tell from an improvement.
template <class T>
typename OptSelect<T>::Set OptSelect<T>::finish_exactly(double tolerance, Work& work) {
  const auto least = std::min_element(found_.begin(), found_.end(),
                                      [](const auto& a, const auto& b) { return a.cost < b.cost; });
  const double limit = static_cast<double>(least->cost) * (1 + tolerance);
  if (largest_ < 0) largest_ = bounds_.largest();
  Set best;
  priced_.clear();
  for (std::size_t run = 0; run < found_.size(); ++run) {
    const index* medoids = found_medoids_.data() + static_cast<index>(run) * k_;
    const auto same = [&](const index* other) { return std::equal(other, other + k_, medoids); };
    if (static_cast<double>(found_[run].cost) > limit ||
        std::any_of(priced_.begin(), priced_.end(), same)) {
      continue;
    }
    priced_.push_back(medoids);
    Set set;
    if (found_[run].exact >= 0) {
      set = {{medoids, medoids + k_}, found_[run].exact, found_[run].swaps};
    } else if (found_[run].certain) {
      const double exact = largest_ > 0 ? cost(medoids) / largest_ : 0.0;
      set = {{medoids, medoids + k_}, exact, found_[run].swaps};
    } else {
      prepare_exact_search(work);
      set = search_exactly(medoids, work);
      set.swaps += found_[run].swaps;
    }
    if (best.medoids.empty() || set.cost < best.cost) best = std::move(set);
  }
  return best;
}

// One start. Best swaps follow Appendix E's sets, all of them: if one is open on the way, the start
// is searched exactly; or, false, with a smaller error first.
template <class T>
bool OptSelect<T>::search_bounded(index run, float tolerance, Work& work) {
  bounded_.run(start(run, work), options_.search.search, tolerance, work, this);
  if (bounded_.ambiguous() && options_.search.search == Search::best) {
    if (bounds_.rough()) return false;
    prepare_exact_search(work);
    const Set set = search_exactly(start(run, work), work);
    found_.push_back(
        {static_cast<float>(set.cost * std::max(largest_, 0.0)), true, set.swaps, set.cost});
    found_medoids_.insert(found_medoids_.end(), set.medoids.begin(), set.medoids.end());
    return true;
  }
  found_.push_back({bounded_.cost(), !bounded_.ambiguous(), bounded_.swaps(), -1});
  const std::vector<index>& medoids = bounded_.medoids();
  found_medoids_.insert(found_medoids_.end(), medoids.begin(), medoids.end());
  std::sort(found_medoids_.end() - k_, found_medoids_.end());
  return true;
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve_bounded(Work& work) {
  const index m = points_.count(), stride = bounds_.stride();
  const auto roundings = static_cast<double>(SmallSearch<float>::roundings(m));
  const auto tolerance =  // relative, of a cost
      static_cast<float>(2.5 * (bounds_.error() + roundings * kFloatRounding));
  bound_weights_.assign(weights_.begin(), weights_.end());
  bound_weights_.resize(static_cast<std::size_t>(stride));
  lengths_.resize(static_cast<std::size_t>(m));
  measured_to_.assign(static_cast<std::size_t>(m), -1);
  for (SmallSearch<float>* search : {&bounded_, &assigning_}) {
    search->set_problem(bounds_.data(), bounds_.data(), stride, bound_weights_.data(), m,
                        candidates_, k_);
  }
  found_.clear();
  found_medoids_.clear();
  for (index run = 0; run < options_.search.n_init; ++run) {
    if (search_bounded(run, tolerance, work)) continue;
    return bounds_.measure(points_, false, {}, work) ? solve_bounded(work) : solve_exactly(work);
  }
  return finish_exactly(static_cast<double>(tolerance), work);
}

template typename OptSelect<float>::Set OptSelect<float>::solve_bounded(Work&);
template typename OptSelect<double>::Set OptSelect<double>::solve_bounded(Work&);
template double OptSelect<float>::cost(const index*);
template double OptSelect<double>::cost(const index*);

}  // namespace pyfast
