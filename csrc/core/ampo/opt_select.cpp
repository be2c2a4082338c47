#include "core/ampo/opt_select.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/distance/scaling.hpp"
#include "core/run/random.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

constexpr index kFilterDimension = 32;  // below it, exact distances are as fast
constexpr index kMostFiltered = 2048;   // points; with more, few costs differ by more than rounding
constexpr index kKeptStarts = 64;
constexpr index kMostAhead = 1 << 18;  // bytes, half of a second-level cache

bool valid(const float* row, index d) { return simd::kernels().valid_f32(row, d, false); }
bool valid(const double* row, index d) { return simd::kernels().valid_f64(row, d, false); }

}  // namespace

template <class T>
void OptSelect<T>::read_group(MatrixView<T> embeddings, const double* rewards, index positive) {
  const index n = embeddings.rows;
  candidates_ = n - 1;
  k_ = std::min(options_.k, candidates_);
  points_.d = embeddings.cols;
  points_.ids.clear();
  for (index i = 0; i < n; ++i) {
    if (i != positive) points_.ids.push_back(i);
  }
  if (options_.cover_top) points_.ids.push_back(positive);  // a point, but behind the candidates
  points_.rows.clear();
  for (const index i : points_.ids) points_.rows.push_back(embeddings.row(i));
  weigh(rewards, n);
  largest_ = -1;
  exact_.clear();
}

// w_i = exp(mean(r) - r_i), r perhaps scaled to [0, 1] over the whole group; the mean is over the
// points.
template <class T>
void OptSelect<T>::weigh(const double* rewards, index n) {
  constexpr double kMost = 600;     // exponent of a weight that leaves sums in double
  constexpr double kMostEven = 20;  // and products in float
  const auto [low, high] = std::minmax_element(rewards, rewards + n);
  const double range = *high / 2 - *low / 2;  // halves, so that no finite rewards overflow
  weights_.clear();
  double mean = 0;
  const auto count = static_cast<double>(points_.ids.size());
  for (const index i : points_.ids) {
    double scaled = range > 0 ? (rewards[i] / 2 - *low / 2) / range : 0.5;
    if (!options_.scale_rewards) scaled = rewards[i];
    weights_.push_back(scaled);
    mean += options_.scale_rewards ? scaled : scaled / count;
  }
  if (options_.scale_rewards) mean /= count;
  even_ = true;
  for (double& w : weights_) {
    const double exponent = mean - w;
    if (!(std::abs(exponent) <= kMost)) {
      throw std::range_error("rewards as they are spread too far for exp(mean - r); scale them");
    }
    even_ = even_ && std::abs(exponent) <= kMostEven;
    w = std::exp(exponent);
  }
  weights_.resize(static_cast<std::size_t>(SmallSearch<double>::padded(points_.count())), 0.0);
}

// Starts depend on the group's size alone, so that equal groups draw the first of them once.
template <class T>
const index* OptSelect<T>::start(index run, Work& work) {
  const auto draw = [&](index r, std::vector<index>& into) {
    shuffled_.resize(static_cast<std::size_t>(candidates_));
    random_subset_into(candidates_, k_, options_.search.seed, static_cast<std::uint32_t>(r),
                       shuffled_.data(), work);
    into.insert(into.end(), shuffled_.begin(), shuffled_.begin() + k_);
  };
  if (run >= kKeptStarts) {
    late_start_.clear();
    draw(run, late_start_);
    return late_start_.data();
  }
  if (starts_candidates_ != candidates_ || starts_k_ != k_) starts_.clear();
  starts_candidates_ = candidates_;
  starts_k_ = k_;
  for (index r = static_cast<index>(starts_.size()) / k_; r <= run; ++r) draw(r, starts_);
  return starts_.data() + run * k_;
}

// Distances in exact_, `stride` numbers from one point to the next, and the largest. False if one
// was not to be had from the square of all coordinates' differences.
template <class T>
bool OptSelect<T>::measure_exactly(index stride, Work& work) {
  const index m = points_.count();
  resize(exact_, m * stride, work);
  squares_.measure(points_.rows.data(), m, points_.d, exact_.data(), stride, work);
  largest_ = 0;
  bool usual = true;
  for (index i = 0; i < m; ++i) {
    work.spend(2 * m);
    double* row = exact_.data() + i * stride;
    for (index j = 0; j < m; ++j) {
      if (i == j || comfortable_square(row[j])) {
        row[j] = std::sqrt(row[j]);
      } else {
        work.spend(points_.d);
        row[j] = points_.distance(i, j);
        usual = false;
      }
      largest_ = std::max(largest_, row[j]);
    }
    if (row[i] != 0) throw_overflow(points_.ids[i], points_.ids[i]);  // it is not finite
  }
  return usual;
}

// Divided by the largest, unless the least of them would vanish: then all times a power of two.
template <class T>
void OptSelect<T>::scale_exactly(index stride, double least, Work& work) {
  constexpr double kVanishing = 1e-250;
  const index m = points_.count();
  const bool vanishing = least / largest_ < kVanishing || largest_ < 1e-290;
  const int up = vanishing ? (even_ ? 900 : 0) - std::ilogb(largest_) : 0;
  unit_ = vanishing ? std::ldexp(largest_, up) : 1.0;
  for (index i = 0; i < m; ++i) {
    work.spend(m);
    double* row = exact_.data() + i * stride;
    if (vanishing) {
      scale_by_power_of_two(row, m, up);
    } else {
      for (index j = 0; j < m; ++j) row[j] /= largest_;
    }
  }
}

// In units of the largest or, see above, of largest / unit_.
template <class T>
void OptSelect<T>::exact_distances(index stride, Work& work) {
  constexpr double kTiny = 1e-280;  // below it, double holds few digits of a distance
  const index m = points_.count();
  unit_ = 1;
  double least = std::numeric_limits<double>::infinity();
  if (!measure_exactly(stride, work)) {
    if (largest_ > 0 && largest_ < kTiny) {
      lift_points(work);
      measure_exactly(stride, work);
    }
    for (index i = 0; i < m; ++i) {
      for (index j = 0; j < i; ++j) {
        const double d = exact_[i * stride + j];
        if (d > 0) least = std::min(least, d);
      }
    }
  }
  if (largest_ > 0) scale_exactly(stride, least, work);
}

// Exactly the same set of points, times a power of two.
template <class T>
void OptSelect<T>::lift_points(Work& work) {
  if constexpr (sizeof(T) == sizeof(double)) {
    const index m = points_.count(), d = points_.d;
    const int up = -std::ilogb(largest_);
    resize(lifted_, m * d, work);
    for (index i = 0; i < m; ++i) {
      T* to = lifted_.data() + i * d;
      std::copy_n(points_.rows[i], d, to);
      scale_by_power_of_two(to, d, up);
      points_.rows[i] = to;
    }
  }
}

template <class T>
void OptSelect<T>::prepare_exact_search(Work& work) {
  if (!exact_.empty()) return;
  const index m = points_.count(), stride = SmallSearch<double>::padded(m);
  exact_distances(stride, work);
  exactly_.set_problem(exact_.data(), exact_.data(), stride, weights_.data(), m, candidates_, k_);
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::search_exactly(const index* start, Work& work) {
  exactly_.run(start, options_.search.search, kImprovement, work);
  Set set{exactly_.medoids(), exactly_.cost() / unit_, exactly_.swaps()};
  std::sort(set.medoids.begin(), set.medoids.end());
  return set;
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve_exactly(Work& work) {
  prepare_exact_search(work);
  Set best;
  for (index run = 0; run < options_.search.n_init; ++run) {
    Set set = search_exactly(start(run, work), work);
    if (run == 0 || set.cost < best.cost) best = std::move(set);
  }
  return best;
}

// Any size, k or start: the search of kmedoids.hpp.
template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve_any(Work& work) {
  const index m = points_.count();
  exact_distances(m, work);
  const KMedoidsProblem<double> problem{{exact_.data(), candidates_, m}, weights_.data(), k_};
  const KMedoidsSolution solution = pyfast::solve(problem, options_.search, work);
  return {solution.medoids, solution.cost / unit_, solution.swaps};
}

// Exact, but not of unit-scaled distances: of each point, that to the medoid that the filter calls
// nearest, or to several that it cannot tell apart.
template <class T>
double OptSelect<T>::cost(const index* medoids) {
  const index m = points_.count();
  const auto close = static_cast<float>(3 * filter_.error());
  assigning_.assign(medoids);
  lengths_.assign(static_cast<std::size_t>(m), 0.0);
  for (index s = 0; s < k_; ++s) {
    members_.clear();
    member_rows_.clear();
    for (index i = 0; i < m; ++i) {
      if (assigning_.near(i) != s || i == medoids[s]) continue;
      if (assigning_.clear(i, close)) {
        members_.push_back(i);
        member_rows_.push_back(points_.rows[i]);
      } else {
        lengths_[i] = shortest(i, medoids, filter_.row(i)[medoids[s]] * (1 + close));
      }
    }
    distances_to(medoids[s]);
  }
  double sum = 0;
  for (index i = 0; i < m; ++i) sum += weights_[i] * lengths_[i];
  return sum;
}

// Exactly, from point i to those medoids that are no farther than `limit` in the filter.
template <class T>
double OptSelect<T>::shortest(index i, const index* medoids, float limit) const {
  const float* row = filter_.row(i);
  double least = std::numeric_limits<double>::infinity();
  for (index s = 0; s < k_; ++s) {
    if (medoids[s] == i) return 0;
    if (row[medoids[s]] <= limit) least = std::min(least, points_.distance(i, medoids[s]));
  }
  return least;
}

// Exactly, of the members to one medoid.
template <class T>
void OptSelect<T>::distances_to(index medoid) {
  const auto count = static_cast<index>(members_.size());
  const T* to = points_.rows[medoid];
  member_squares_.resize(members_.size());
  double* squares = member_squares_.data();
  if constexpr (sizeof(T) == sizeof(float)) {
    simd::kernels().squares_to_wide(member_rows_.data(), count, to, points_.d, squares);
  } else {
    simd::kernels().squares_to_f64(member_rows_.data(), count, to, points_.d, squares);
  }
  for (index q = 0; q < count; ++q) lengths_[members_[q]] = std::sqrt(squares[q]);
}

// Sets whose costs the filter cannot tell from its best, in the order of their starts, are judged
// exactly; so is every swap from them that it cannot tell from an improvement.
template <class T>
typename OptSelect<T>::Set OptSelect<T>::settle(double tolerance, Work& work) {
  const auto least = std::min_element(found_.begin(), found_.end(),
                                      [](const auto& a, const auto& b) { return a.cost < b.cost; });
  const double limit = static_cast<double>(least->cost) * (1 + tolerance);
  if (largest_ < 0) largest_ = filter_.largest();
  Set best;
  judged_.clear();
  for (std::size_t run = 0; run < found_.size(); ++run) {
    const index* medoids = found_medoids_.data() + static_cast<index>(run) * k_;
    const auto same = [&](const index* other) { return std::equal(other, other + k_, medoids); };
    if (static_cast<double>(found_[run].cost) > limit ||
        std::any_of(judged_.begin(), judged_.end(), same)) {
      continue;
    }
    judged_.push_back(medoids);
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
// is searched exactly.
template <class T>
void OptSelect<T>::search_filtered(index run, float tolerance, Work& work) {
  filtered_.run(start(run, work), options_.search.search, tolerance, work, this);
  if (filtered_.ambiguous() && options_.search.search == Search::best) {
    prepare_exact_search(work);
    const Set set = search_exactly(start(run, work), work);
    found_.push_back(
        {static_cast<float>(set.cost * std::max(largest_, 0.0)), true, set.swaps, set.cost});
    found_medoids_.insert(found_medoids_.end(), set.medoids.begin(), set.medoids.end());
    return;
  }
  found_.push_back({filtered_.cost(), !filtered_.ambiguous(), filtered_.swaps(), -1});
  const std::vector<index>& medoids = filtered_.medoids();
  found_medoids_.insert(found_medoids_.end(), medoids.begin(), medoids.end());
  std::sort(found_medoids_.end() - k_, found_medoids_.end());
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve_filtered(Work& work) {
  const index m = points_.count(), stride = filter_.stride();
  const auto roundings = static_cast<double>(SmallSearch<float>::roundings(m));
  const auto tolerance =  // relative, of a cost
      static_cast<float>(2.5 * (filter_.error() + roundings * kFloatRounding));
  filter_weights_.assign(weights_.begin(), weights_.end());
  filter_weights_.resize(static_cast<std::size_t>(stride));
  for (SmallSearch<float>* search : {&filtered_, &assigning_}) {
    search->set_problem(filter_.data(), filter_.data(), stride, filter_weights_.data(), m,
                        candidates_, k_);
  }
  found_.clear();
  found_medoids_.clear();
  for (index run = 0; run < options_.search.n_init; ++run) search_filtered(run, tolerance, work);
  return settle(static_cast<double>(tolerance), work);
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve(Work& work) {
  const bool filter =
      even_ && points_.d >= kFilterDimension && filter_.measure(points_, ahead_, work);
  return filter ? solve_filtered(work) : solve_exactly(work);
}

template <class T>
GroupSelection OptSelect<T>::select(MatrixView<T> embeddings, const double* rewards,
                                    MatrixView<T> next, Work& work) {
  const index bytes = next.rows * next.cols * static_cast<index>(sizeof(T));
  ahead_ = {next.data, std::min(bytes, kMostAhead)};
  GroupSelection selection;
  const index n = embeddings.rows;
  selection.positive = first_highest(rewards, n);
  if (!valid(embeddings.row(selection.positive), embeddings.cols)) {  // perhaps in no distance
    throw std::range_error("the embedding of the best response is not finite");
  }
  if (n == 1) return selection;
  read_group(embeddings, rewards, selection.positive);
  if (points_.count() == 1 && !valid(points_.rows[0], points_.d)) {  // in no distance either
    throw std::range_error("the embedding of the only other response is not finite");
  }
  const bool usual = points_.count() <= kMostFiltered && k_ > 1 && k_ < candidates_ &&
                     options_.search.init == KMedoidsOptions::Init::random;
  const Set set = usual ? solve(work) : solve_any(work);
  for (const index medoid : set.medoids) selection.negatives.push_back(points_.ids[medoid]);
  selection.cost = set.cost;
  selection.swaps = set.swaps;
  return selection;
}

template <class T>
GroupSelection opt_select(MatrixView<T> embeddings, const double* rewards, index k, bool cover_top,
                          const KMedoidsOptions& options, Work& work) {
  return OptSelect<T>({k, cover_top, true, options}).select(embeddings, rewards, {}, work);
}

#define PYFAST_INSTANTIATE(T)                                                   \
  template class OptSelect<T>;                                                  \
  template GroupSelection opt_select(MatrixView<T>, const double*, index, bool, \
                                     const KMedoidsOptions&, Work&);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
