#include "core/opt_select.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/distances.hpp"
#include "core/subsets.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

constexpr double kRounding = 0x1.0p-24;  // of one float operation
constexpr index kFilterDimension = 32;   // below it, exact distances are as fast
constexpr index kKeptStarts = 64;
constexpr index kMostAhead = 1 << 18;  // bytes, half of a second-level cache
constexpr float kShrunk =
    8;  // of distances between rows and the first: closer pairs are measured exactly

index padded(index count, index to) { return (count + to - 1) / to * to; }

bool valid(const float* row, index d) { return simd::kernels().valid_f32(row, d, false); }
bool valid(const double* row, index d) { return simd::kernels().valid_f64(row, d, false); }

}  // namespace

template <class T>
double OptSelect<T>::distance(index i, index j) const {
  const double distance = exact_distance(rows_[i], rows_[j], d_);
  if (!std::isfinite(distance)) throw_overflow(ids_[i], ids_[j]);
  return distance;
}

template <class T>
void OptSelect<T>::read_group(MatrixView<T> embeddings, const double* rewards, index positive) {
  const index n = embeddings.rows;
  d_ = embeddings.cols;
  candidates_ = n - 1;
  k_ = std::min(options_.k, candidates_);
  ids_.clear();
  for (index i = 0; i < n; ++i) {
    if (i != positive) ids_.push_back(i);
  }
  if (options_.cover_top) ids_.push_back(positive);  // a point, but behind the candidates
  rows_.clear();
  for (const index i : ids_) rows_.push_back(embeddings.row(i));
  weigh(rewards, n);
  largest_ = -1;
  exact_.clear();
}

// w_i = exp(mean(r) - r_i), r scaled to [0, 1] over the whole group; the mean is over the points.
template <class T>
void OptSelect<T>::weigh(const double* rewards, index n) {
  const auto [low, high] = std::minmax_element(rewards, rewards + n);
  const double range = *high / 2 - *low / 2;  // halves, so that no finite rewards overflow
  weights_.clear();
  double mean = 0;
  for (const index i : ids_) {
    const double scaled = range > 0 ? (rewards[i] / 2 - *low / 2) / range : 0.5;
    weights_.push_back(scaled);
    mean += scaled;
  }
  mean /= static_cast<double>(ids_.size());
  for (double& w : weights_) w = std::exp(mean - w);
  weights_.resize(static_cast<std::size_t>(SmallSearch<double>::padded(points())), 0.0);
}

// Starts depend on the group's size alone, so that equal groups draw the first of them once.
template <class T>
const index* OptSelect<T>::start(index run) {
  const auto draw = [&](index r, std::vector<index>& into) {
    shuffled_.resize(static_cast<std::size_t>(candidates_));
    random_subset_into(candidates_, k_, options_.search.seed, static_cast<std::uint32_t>(r),
                       shuffled_.data());
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

// Exact distances: double arithmetic on the rows as given.

template <class T>
void OptSelect<T>::exact_distances(Token& token) {
  const index m = points(), stride = SmallSearch<double>::padded(m);
  std::vector<double>& all = exact_;
  all.assign(static_cast<std::size_t>(m * stride), 0.0);
  squares_.measure(rows_.data(), m, d_, all.data(), stride, token);
  largest_ = 0;
  for (index i = 0; i < m; ++i) {
    for (index j = 0; j < m; ++j) {
      double& d = all[i * stride + j];
      d = std::sqrt(d);
      if (!std::isfinite(d)) throw_overflow(ids_[i], ids_[j]);
      largest_ = std::max(largest_, d);
    }
  }
  if (largest_ > 0) {
    for (double& d : all) d /= largest_;
  }
  exactly_.set_problem(all.data(), all.data(), stride, weights_.data(), m, candidates_, k_);
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::search_exactly(const index* start, Token& token) {
  exactly_.run(start, options_.search.search, kImprovement, token);
  Set set{exactly_.medoids(), exactly_.cost(), exactly_.swaps()};
  std::sort(set.medoids.begin(), set.medoids.end());
  return set;
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve_exactly(Token& token) {
  exact_distances(token);
  Set best;
  for (index run = 0; run < options_.search.n_init; ++run) {
    Set set = search_exactly(start(run), token);
    if (run == 0 || set.cost < best.cost) best = std::move(set);
  }
  return best;
}

// The filter: float distances with a known bound on their error. They find a local optimum; exact
// distances then judge what the bound leaves open, so that the answer is one of exact distances.

// A square of float rows is off by one rounding of each difference, twice, and one of each addition
// on the way of a number to the total; its root by half of that and one more. Rows of double that
// float cannot hold are rounded after taking off the first row, which is off by one rounding of
// either row's distance to the first: up to kShrunk of them for pairs not closer than by that
// factor. False if float cannot hold the distances so.
template <class T>
bool OptSelect<T>::filter_distances(Token& token) {
  const index m = points(), width = padded(d_, 16), stride = SmallSearch<float>::padded(m);
  token.spend(m * m * d_ / 4);
  const bool exact = narrow_rows(width);
  filter_.resize(static_cast<std::size_t>(m * stride));
  row_largest_.resize(static_cast<std::size_t>(m));
  simd::kernels().pair_squares_f32(narrow_rows_.data(), m, width, filter_.data(), stride, ahead_);
  const bool good = simd::kernels().roots(filter_.data(), m, stride, row_largest_.data());
  const double additions =
      static_cast<double>(std::min<index>(d_, 1024)) / 16 + static_cast<double>(d_) / 1024 + 5;
  error_ = ((additions + 2) / 2 + 1 + (exact ? 0 : kShrunk)) * kRounding;
  return (exact || measure_close_pairs(stride)) && (good || measure_odd_pairs(stride));
}

// Rows of float, their length a multiple of 16. Whether they hold the numbers as given.
template <class T>
bool OptSelect<T>::narrow_rows(index width) {
  const index m = points();
  bool exact = true;
  narrow_rows_.clear();
  if constexpr (sizeof(T) == sizeof(float)) {
    if (width == d_) narrow_rows_ = rows_;
  }
  if (narrow_rows_.empty()) {
    narrow_.resize(static_cast<std::size_t>(m * width));
    for (index i = 0; i < m; ++i) narrow_rows_.push_back(narrow_.data() + i * width);
    if constexpr (sizeof(T) == sizeof(float)) {
      for (index i = 0; i < m; ++i) {
        float* to = narrow_.data() + i * width;
        std::fill(std::copy(rows_[i], rows_[i] + d_, to), to + width, 0.0f);
      }
    } else {
      const auto narrow = simd::kernels().narrow;
      exact = narrow(rows_.data(), m, d_, nullptr, narrow_.data(), width);
      if (!exact) narrow(rows_.data(), m, d_, rows_[0], narrow_.data(), width);
    }
  }
  narrow_rows_.resize(static_cast<std::size_t>(m + simd::kSpareRows), narrow_rows_[0]);
  return exact;
}

// The exact distance in the filter. False if it is out of float's comfortable range.
template <class T>
bool OptSelect<T>::measure(index i, index j, index stride) {
  const double exact = distance(i, j);
  if (exact != 0 && !(exact > 1e-30 && exact < 1e30)) return false;
  filter_[i * stride + j] = filter_[j * stride + i] = static_cast<float>(exact);
  return true;
}

template <class T>
bool OptSelect<T>::measure_close_pairs(index stride) {
  for (index i = 1; i < points(); ++i) {
    const float* row = filter_.data() + i * stride;
    for (index j = 1; j < i; ++j) {
      if (row[j] * kShrunk > filter_[i] + filter_[j]) continue;
      if (!measure(i, j, stride)) return false;
    }
  }
  return true;
}

template <class T>
bool OptSelect<T>::measure_odd_pairs(index stride) {
  for (index i = 1; i < points(); ++i) {
    const float* row = filter_.data() + i * stride;
    for (index j = 0; j < i; ++j) {
      if (row[j] >= 1e-14f && row[j] <= 3e18f) continue;
      if (!measure(i, j, stride)) return false;
    }
  }
  for (index i = 0; i < points(); ++i) {
    const float* row = filter_.data() + i * stride;
    row_largest_[i] = *std::max_element(row, row + points());
  }
  return true;
}

// The largest distance, exactly: of the pairs that the filter cannot tell from its largest.
template <class T>
void OptSelect<T>::find_largest(double tolerance) {
  const index m = points(), stride = SmallSearch<float>::padded(m);
  const float most = *std::max_element(row_largest_.begin(), row_largest_.end());
  const auto enough = static_cast<float>(static_cast<double>(most) * (1 - tolerance));
  largest_ = 0;
  if (most == 0) return;
  for (index i = 0; i < m; ++i) {
    if (row_largest_[i] < enough) continue;
    for (index j = 0; j < i; ++j) {
      if (filter_[i * stride + j] >= enough) largest_ = std::max(largest_, distance(i, j));
    }
  }
}

// Exact, but not of unit-scaled distances: of each point, that to the medoid that the filter calls
// nearest, or to several that it cannot tell apart.
template <class T>
double OptSelect<T>::cost(const index* medoids) {
  const index m = points(), stride = SmallSearch<float>::padded(m);
  const auto close = static_cast<float>(3 * error_);
  assigning_.assign(medoids);
  lengths_.assign(static_cast<std::size_t>(m), 0.0);
  for (index s = 0; s < k_; ++s) {
    members_.clear();
    member_rows_.clear();
    for (index i = 0; i < m; ++i) {
      if (assigning_.near(i) != s || i == medoids[s]) continue;
      if (assigning_.clear(i, close)) {
        members_.push_back(i);
        member_rows_.push_back(rows_[i]);
      } else {
        lengths_[i] = shortest(i, medoids, filter_[i * stride + medoids[s]] * (1 + close));
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
  const float* row = filter_.data() + i * SmallSearch<float>::padded(points());
  double least = std::numeric_limits<double>::infinity();
  for (index s = 0; s < k_; ++s) {
    if (medoids[s] == i) return 0;
    if (row[medoids[s]] <= limit) least = std::min(least, distance(i, medoids[s]));
  }
  return least;
}

// Exactly, of the members to one medoid.
template <class T>
void OptSelect<T>::distances_to(index medoid) {
  const auto count = static_cast<index>(members_.size());
  double squares[kSmall];
  if constexpr (sizeof(T) == sizeof(float)) {
    simd::kernels().squares_to_wide(member_rows_.data(), count, rows_[medoid], d_, squares);
  } else {
    simd::kernels().squares_to_f64(member_rows_.data(), count, rows_[medoid], d_, squares);
  }
  for (index q = 0; q < count; ++q) lengths_[members_[q]] = std::sqrt(squares[q]);
}

// Sets whose costs the filter cannot tell from its best, in the order of their starts, are judged
// exactly; so is every swap from them that it cannot tell from an improvement.
template <class T>
typename OptSelect<T>::Set OptSelect<T>::settle(double tolerance, Token& token) {
  const auto least = std::min_element(found_.begin(), found_.end(),
                                      [](const auto& a, const auto& b) { return a.cost < b.cost; });
  const double limit = static_cast<double>(least->cost) * (1 + tolerance);
  find_largest(3 * error_);
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
      if (exact_.empty()) exact_distances(token);
      set = search_exactly(medoids, token);
      set.swaps += found_[run].swaps;
    }
    if (best.medoids.empty() || set.cost < best.cost) best = std::move(set);
  }
  return best;
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve_filtered(Token& token) {
  const double rounding = error_ + static_cast<double>(points() + 8) * kRounding;  // of a cost
  const auto tolerance = static_cast<float>(2.5 * rounding);
  filter_weights_.assign(weights_.begin(), weights_.end());
  filter_weights_.resize(static_cast<std::size_t>(SmallSearch<float>::padded(points())));
  for (SmallSearch<float>* search : {&filtered_, &assigning_}) {
    search->set_problem(filter_.data(), filter_.data(), SmallSearch<float>::padded(points()),
                        filter_weights_.data(), points(), candidates_, k_);
  }
  found_.clear();
  found_medoids_.clear();
  for (index run = 0; run < options_.search.n_init; ++run) {
    filtered_.run(start(run), options_.search.search, tolerance, token, this);
    if (filtered_.ambiguous() && options_.search.search == Search::best) {
      // Best swaps follow Appendix E's sets, all of them: what is open on the way is decided here.
      if (exact_.empty()) exact_distances(token);
      const Set set = search_exactly(start(run), token);
      found_.push_back(
          {static_cast<float>(set.cost * std::max(largest_, 0.0)), true, set.swaps, set.cost});
      found_medoids_.insert(found_medoids_.end(), set.medoids.begin(), set.medoids.end());
      continue;
    }
    found_.push_back({filtered_.cost(), !filtered_.ambiguous(), filtered_.swaps(), -1});
    const std::vector<index>& medoids = filtered_.medoids();
    found_medoids_.insert(found_medoids_.end(), medoids.begin(), medoids.end());
    std::sort(found_medoids_.end() - k_, found_medoids_.end());
  }
  return settle(static_cast<double>(tolerance), token);
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve_small(Token& token) {
  const bool filter = d_ >= kFilterDimension && filter_distances(token);
  return filter ? solve_filtered(token) : solve_exactly(token);
}

// Any size, k or start: the search of kmedoids.hpp on exact distances.
template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve_large(int threads, Cancel& cancel, Token& token) {
  const index m = points();
  std::vector<double> distances(static_cast<std::size_t>(m * m), 0.0);
  largest_ = 0;
  for (index i = 0; i < m; ++i) {
    token.spend(i * d_);
    for (index j = 0; j < i; ++j) {
      distances[i * m + j] = distances[j * m + i] = distance(i, j);
      largest_ = std::max(largest_, distances[i * m + j]);
    }
  }
  if (largest_ > 0) {
    for (double& d : distances) d /= largest_;
  }
  const KMedoidsProblem<double> problem{{distances.data(), candidates_, m}, weights_.data(), k_};
  const KMedoidsSolution solution = kmedoids(problem, options_.search, threads, cancel, token);
  return {solution.medoids, solution.cost, solution.swaps};
}

template <class T>
GroupSelection OptSelect<T>::select(MatrixView<T> embeddings, const double* rewards,
                                    MatrixView<T> next, int threads, Cancel& cancel, Token& token) {
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
  const bool small = points() <= kSmall && k_ > 1 && k_ < candidates_ &&
                     options_.search.init == KMedoidsOptions::Init::random;
  const Set set = small ? solve_small(token) : solve_large(threads, cancel, token);
  for (const index medoid : set.medoids) selection.negatives.push_back(ids_[medoid]);
  selection.cost = set.cost;
  selection.swaps = set.swaps;
  return selection;
}

template <class T>
GroupSelection opt_select(MatrixView<T> embeddings, const double* rewards, index k, bool cover_top,
                          const KMedoidsOptions& options, int threads, Cancel& cancel,
                          Token& token) {
  return OptSelect<T>({k, cover_top, options})
      .select(embeddings, rewards, {}, threads, cancel, token);
}

#define PYFAST_INSTANTIATE(T)                                                   \
  template class OptSelect<T>;                                                  \
  template GroupSelection opt_select(MatrixView<T>, const double*, index, bool, \
                                     const KMedoidsOptions&, int, Cancel&, Token&);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
