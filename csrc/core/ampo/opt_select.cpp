// AMPO's Opt-Select on one page: Algorithm 4 (and appendix E) for one group.
//
//   1  y+ <- the first response of the highest reward, out of the pool: select()
//   2  d_ij <- ||e_i - e_j|| / the largest: unit_distances.cpp
//   3  w_i <- exp(mean r - r_i): weigh()
//   4  S <- k random candidates, then the best swap while one lowers sum_i w_i min_{j in S} d_ij:
//      solve_exactly()
//   5  the negatives are S
//
// Lines 2 and 4 take nearly all of the time, and a bound on float distances does most of both: see
// bounded.cpp, which changes no answer. Of 384 numbers a response it is 1.7 times as fast for 32
// responses, 3.5 times for 512 and 4.5 times for 2,048 (AVX-512, one thread, best of one start).
#include "core/ampo/opt_select.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/kmedoids/kmedoids.hpp"
#include "core/run/random.hpp"
#include "core/run/starts.hpp"
#include "simd/simd.hpp"

namespace pyfast {

namespace {

constexpr index kBoundsFrom = 32;     // numbers a response; below it, exact distances are as fast
constexpr index kMostBounded = 2048;  // points; with more, few costs differ by more than rounding
constexpr index kKeptStarts = 64;
constexpr index kMostAhead = 1 << 18;  // bytes, half of a second-level cache

bool valid(const float* row, index d) { return simd::kernels().valid_f32(row, d, false); }
bool valid(const double* row, index d) { return simd::kernels().valid_f64(row, d, false); }

}  // namespace

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
  const bool usual = points_.count() <= kMostBounded && k_ > 1 && k_ < candidates_ &&
                     options_.search.init == KMedoidsOptions::Init::random;
  const Set set = usual ? solve(work) : solve_any(work);
  for (const index medoid : set.medoids) selection.negatives.push_back(points_.ids[medoid]);
  selection.cost = set.cost;
  selection.swaps = set.swaps;
  return selection;
}

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
  return best_of(
      options_.search.n_init, [](const Set& set) { return set.cost; },
      [&](index run) { return search_exactly(start(run, work), work); });
}

template <class T>
typename OptSelect<T>::Set OptSelect<T>::solve(Work& work) {
  // An eager search may go another way for a larger error; a best one is told where that matters.
  const bool rough = options_.search.search == Search::best;
  const bool bounded =
      even_ && points_.d >= kBoundsFrom && bounds_.measure(points_, rough, ahead_, work);
  return bounded ? solve_bounded(work) : solve_exactly(work);
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

template <class T>
GroupSelection opt_select(MatrixView<T> embeddings, const double* rewards, index k, bool cover_top,
                          const KMedoidsOptions& options, Work& work) {
  return OptSelect<T>({k, cover_top, true, options}).select(embeddings, rewards, {}, work);
}

#define PYFAST_INSTANTIATE(T)                                                               \
  template GroupSelection OptSelect<T>::select(MatrixView<T>, const double*, MatrixView<T>, \
                                               Work&);                                      \
  template void OptSelect<T>::prepare_exact_search(Work&);                                  \
  template typename OptSelect<T>::Set OptSelect<T>::search_exactly(const index*, Work&);    \
  template typename OptSelect<T>::Set OptSelect<T>::solve_exactly(Work&);                   \
  template const index* OptSelect<T>::start(index, Work&);                                  \
  template GroupSelection opt_select(MatrixView<T>, const double*, index, bool,             \
                                     const KMedoidsOptions&, Work&);
PYFAST_INSTANTIATE(float)
PYFAST_INSTANTIATE(double)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
