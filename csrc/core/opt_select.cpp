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

template <class T>
void OptSelect<T>::draw_start(index run) {
  start_.resize(static_cast<std::size_t>(candidates_));
  random_subset_into(candidates_, k_, options_.search.seed, static_cast<std::uint32_t>(run),
                     start_.data());
}

// Exact distances: double arithmetic on the rows as given.

template <class T>
void OptSelect<T>::exact_distances(Token& token) {
  const index m = points(), stride = SmallSearch<double>::padded(m);
  gathered_.clear();
  for (const T* row : rows_) gathered_.insert(gathered_.end(), row, row + d_);
  std::vector<double>& all = exact_;
  all.assign(static_cast<std::size_t>(m * stride), 0.0);
  exact_squares(MatrixView<T>{gathered_.data(), m, d_}, all.data(), stride, token);
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
    draw_start(run);
    Set set = search_exactly(start_.data(), token);
    if (run == 0 || set.cost < best.cost) best = std::move(set);
  }
  return best;
}

// The filter: float distances with a known bound on their error. They find a local optimum; exact
// distances then judge what the bound leaves open, so that the answer is one of exact distances.

// |x_i - x_j|^2 as norms minus twice the product, of rows less the first one. A dot product of
// rows x, y is off by at most (d / 16 + 8) roundings of |x| |y|; with three of them and a square
// of at least `share` of the norms, a distance is off by (d / 16 + 12) / share roundings. Groups
// without close pairs get by with a large share. False if float cannot hold the distances so.
template <class T>
bool OptSelect<T>::filter_distances(Token& token) {
  const index m = points(), width = padded(d_, 16), stride = SmallSearch<float>::padded(m);
  const simd::Kernels& kernels = simd::kernels();
  token.spend(m * m * d_ / 4);
  narrow_.resize(static_cast<std::size_t>(m * width));
  if constexpr (sizeof(T) == sizeof(float)) {
    kernels.centre_f32(rows_.data(), m, d_, narrow_.data(), width);
  } else {
    kernels.centre_f64(rows_.data(), m, d_, narrow_.data(), width);
  }
  dots_.resize(static_cast<std::size_t>(m * stride));
  constexpr index kPanel = 3;
  for (index j = 0; j < m; j += kPanel) {
    const float* from = narrow_.data() + j * width;
    kernels.dot_f32(from, m - j, width, from, std::min(kPanel, m - j), width, width,
                    dots_.data() + j * stride + j, stride);
  }
  const double terms =
      static_cast<double>(std::min<index>(d_, 1024)) / 16 + static_cast<double>(d_) / 1024 + 12;
  for (const float share : {0.4f, 0.125f}) {
    error_ = terms * kRounding / static_cast<double>(share);
    if (filter_from_dots(share, stride)) return true;
  }
  return false;
}

// Fills the filter's distances from the products. False if a square is below `share` of its norms,
// or, for the lowest share, if its exact distance is out of float's comfortable range.
template <class T>
bool OptSelect<T>::filter_from_dots(float share, index stride) {
  const index m = points();
  const simd::Kernels& kernels = simd::kernels();
  norms_.resize(static_cast<std::size_t>(m));
  filter_.resize(static_cast<std::size_t>(m * stride));
  for (index i = 0; i < m; ++i) {
    float* row = filter_.data() + i * stride;
    const float* dots = dots_.data() + i * stride;
    norms_[i] = dots[i];
    if (!kernels.lengths(norms_[i], norms_.data(), dots, i, share, row)) {
      if (share > 0.125f) return false;
      for (index j = 0; j < i; ++j) {
        float one;
        if (kernels.lengths(norms_[i], norms_.data() + j, dots + j, 1, share, &one)) continue;
        const double exact = distance(i, j);
        if (exact != 0 && !(exact > 1e-30 && exact < 1e30)) return false;
        row[j] = static_cast<float>(exact);
      }
    }
    row[i] = 0;
    std::fill(row + m, row + stride, 0.0f);
    for (index j = 0; j < i; ++j) filter_[j * stride + i] = row[j];
  }
  return true;
}

// The largest distance, exactly: of the pairs that the filter cannot tell from its largest.
template <class T>
void OptSelect<T>::find_largest(double tolerance) {
  const index m = points(), stride = SmallSearch<float>::padded(m);
  row_largest_.resize(static_cast<std::size_t>(m));
  for (index i = 0; i < m; ++i) {
    row_largest_[i] = simd::kernels().largest(filter_.data() + i * stride, stride);
  }
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

template <class T>
double OptSelect<T>::exact_cost(const index* medoids) const {
  const index stride = SmallSearch<float>::padded(points());
  double cost = 0;
  for (index i = 0; i < points(); ++i) {
    const float* row = filter_.data() + i * stride;
    float nearest = std::numeric_limits<float>::infinity();
    for (index s = 0; s < k_; ++s) nearest = std::min(nearest, row[medoids[s]]);
    if (std::binary_search(medoids, medoids + k_, i)) continue;
    const double close = static_cast<double>(nearest) * (1 + 3 * error_);
    double least = std::numeric_limits<double>::infinity();
    for (index s = 0; s < k_; ++s) {
      if (static_cast<double>(row[medoids[s]]) <= close) {
        least = std::min(least, distance(i, medoids[s]));
      }
    }
    cost += weights_[i] * (largest_ > 0 ? least / largest_ : 0.0);
  }
  return cost;
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
    if (found_[run].certain) {
      set = {{medoids, medoids + k_}, exact_cost(medoids), found_[run].swaps};
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
  filtered_.set_problem(filter_.data(), filter_.data(), SmallSearch<float>::padded(points()),
                        filter_weights_.data(), points(), candidates_, k_);
  found_.clear();
  found_medoids_.clear();
  for (index run = 0; run < options_.search.n_init; ++run) {
    draw_start(run);
    filtered_.run(start_.data(), options_.search.search, tolerance, token);
    const float cost = filtered_.cost();
    found_.push_back({cost, !filtered_.ambiguous(), filtered_.swaps()});
    // Best swaps follow Appendix E's sets, all of them: what is open on the way is decided there.
    if (filtered_.ambiguous() && options_.search.search == Search::best)
      return solve_exactly(token);
    const std::vector<index>& medoids = filtered_.medoids();
    found_medoids_.insert(found_medoids_.end(), medoids.begin(), medoids.end());
    std::sort(found_medoids_.end() - k_, found_medoids_.end());
  }
  return settle(static_cast<double>(tolerance), token);
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve_small(Token& token) {
  // Of many best searches, one would be open on its way too often for the filter to pay.
  const bool worthwhile = d_ >= kFilterDimension &&
                          (options_.search.search == Search::eager || options_.search.n_init == 1);
  const bool filter = worthwhile && filter_distances(token);
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
GroupSelection OptSelect<T>::select(MatrixView<T> embeddings, const double* rewards, int threads,
                                    Cancel& cancel, Token& token) {
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
  return OptSelect<T>({k, cover_top, options}).select(embeddings, rewards, threads, cancel, token);
}

#define PYFAST_INSTANTIATE(T)                                                   \
  template class OptSelect<T>;                                                  \
  template GroupSelection opt_select(MatrixView<T>, const double*, index, bool, \
                                     const KMedoidsOptions&, int, Cancel&, Token&);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
