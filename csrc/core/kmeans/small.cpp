#include "core/kmeans/small.hpp"

#include <algorithm>
#include <limits>

#include "core/kmeans/kmeans_plus_plus.hpp"
#include "core/run/random.hpp"

namespace pyfast {

namespace {

class SmallLloyd {
 public:
  SmallLloyd(const double* squares, index n, index k)
      : squares_(squares),
        n_(n),
        k_(k),
        labels_(static_cast<std::size_t>(n)),
        before_(static_cast<std::size_t>(n)),
        own_(static_cast<std::size_t>(n)),
        sizes_(static_cast<std::size_t>(k)),
        spread_(static_cast<std::size_t>(k)),
        to_centres_(static_cast<std::size_t>(n * k)) {}

  KMeansSolution run(const std::vector<index>& centres, index max_iter, Work& work) {
    std::fill(labels_.begin(), labels_.end(), -1);
    for (index c = 0; c < k_; ++c) {
      std::copy(row(centres[c]), row(centres[c]) + n_, to_centre(c));
    }
    index iterations = 0;
    while (iterations < max_iter) {
      ++iterations;
      work.spend(n_ * (n_ + k_));
      const bool changed = assign_points();
      move_centres();
      if (!changed) break;
    }
    double inertia = 0;
    for (index c = 0; c < k_; ++c) inertia += spread_[c] / static_cast<double>(2 * sizes_[c]);
    return {labels_, inertia, iterations};
  }

 private:
  const double* row(index i) const { return squares_ + i * n_; }
  double* to_centre(index c) { return to_centres_.data() + c * n_; }

  bool assign_points() {
    before_ = labels_;
    std::fill(sizes_.begin(), sizes_.end(), 0);
    std::fill(own_.begin(), own_.end(), std::numeric_limits<double>::infinity());
    for (index c = 0; c < k_; ++c) {
      const double* to = to_centre(c);
      for (index i = 0; i < n_; ++i) {
        if (to[i] < own_[i]) {
          own_[i] = to[i];
          labels_[i] = c;
        }
      }
    }
    for (const index c : labels_) ++sizes_[c];
    for (index c = 0; c < k_; ++c) {
      if (sizes_[c] == 0) refill_cluster(c, labels_, own_, sizes_);
    }
    return labels_ != before_;
  }

  void move_centres() {
    std::fill(to_centres_.begin(), to_centres_.end(), 0.0);
    for (index l = 0; l < n_; ++l) {
      const double* from = row(l);
      double* to = to_centre(labels_[l]);
      for (index i = 0; i < n_; ++i) to[i] += from[i];
    }
    std::fill(spread_.begin(), spread_.end(), 0.0);
    for (index l = 0; l < n_; ++l) spread_[labels_[l]] += to_centre(labels_[l])[l];
    for (index c = 0; c < k_; ++c) {
      const double size = static_cast<double>(sizes_[c]);
      const double half_mean = spread_[c] / (2 * size * size);
      double* to = to_centre(c);
      for (index i = 0; i < n_; ++i) to[i] = std::max(to[i] / size - half_mean, 0.0);
    }
  }

  const double* squares_;
  index n_, k_;
  std::vector<index> labels_, before_;
  std::vector<double> own_;  // squared distance of each point to its own centre
  std::vector<index> sizes_;
  std::vector<double> spread_;      // of each cluster: sum of D2 over its ordered pairs
  std::vector<double> to_centres_;  // k x n squared distances
};

}  // namespace

KMeansSolution small_kmeans(const double* squares, index n, index k, const KMeansOptions& options,
                            Work& work) {
  SmallLloyd lloyd(squares, n, k);
  KMeansSolution best;
  for (index run = 0; run < options.n_init; ++run) {
    Random random(options.seed, Purpose::kmeans, static_cast<std::uint32_t>(run));
    const auto square = [&](index i, index j) { return squares[i * n + j]; };
    KMeansSolution solution =
        lloyd.run(plus_plus<double>(n, k, square, random), options.max_iter, work);
    if (run == 0 || solution.inertia < best.inertia) best = std::move(solution);
  }
  return best;
}

}  // namespace pyfast
