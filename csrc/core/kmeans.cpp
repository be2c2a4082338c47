#include "core/kmeans.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "core/distances.hpp"
#include "core/philox.hpp"

namespace pyfast {

namespace {

MatrixView<double> view(const std::vector<double>& data, index rows, index cols) {
  return {data.data(), rows, cols};
}

void check_finite(double squared) {
  if (!std::isfinite(squared)) {
    throw std::range_error("a squared distance overflows float64; scale the points down");
  }
}

// The point whose cumulated squared distance passes u times the total. With a total of zero every
// point sits on a centre already: point 0 comes back, and Lloyd refills the empty cluster.
index draw_weighted(const std::vector<double>& squared, double total, double u) {
  const index n = static_cast<index>(squared.size());
  double left = u * total;
  index last = 0;
  for (index i = 0; i < n; ++i) {
    if (squared[i] <= 0) continue;
    last = i;
    left -= squared[i];
    if (left < 0) return i;
  }
  return last;  // rounding left a crumb
}

// k-means++ (Arthur and Vassilvitskii 2007) in the greedy form that scikit-learn uses: of
// 2 + floor(log k) draws, keep the one that lowers the potential most.
std::vector<double> plus_plus(MatrixView<double> x, index k, Random& random, Token& token) {
  const index n = x.rows;
  const int trials = 2 + static_cast<int>(std::log(static_cast<double>(k)));
  std::vector<double> centres;
  centres.reserve(static_cast<std::size_t>(k * x.cols));
  std::vector<double> nearest(static_cast<std::size_t>(n), std::numeric_limits<double>::infinity());
  std::vector<double> trial(nearest), kept(nearest);
  double total = 0;

  const auto potential = [&](index centre) {
    token.spend(n * x.cols);
    double sum = 0;
    for (index i = 0; i < n; ++i) {
      trial[i] = std::min(nearest[i], squared_distance(x.row(i), x.row(centre), x.cols));
      sum += trial[i];
    }
    check_finite(sum);
    return sum;
  };
  const auto add = [&](index centre) {
    centres.insert(centres.end(), x.row(centre), x.row(centre) + x.cols);
  };

  const index first = random.below(n);
  total = potential(first);
  nearest.swap(trial);
  add(first);
  for (index c = 1; c < k; ++c) {
    index best = -1;
    double best_total = 0;
    for (int t = 0; t < trials; ++t) {
      const index candidate = draw_weighted(nearest, total, random.uniform());
      const double sum = potential(candidate);
      if (best < 0 || sum < best_total) {
        best = candidate;
        best_total = sum;
        kept.swap(trial);
      }
    }
    nearest.swap(kept);
    total = best_total;
    add(best);
  }
  return centres;
}

class Lloyd {
 public:
  Lloyd(MatrixView<double> x, index k, std::vector<double> centres)
      : x_(x),
        k_(k),
        centres_(std::move(centres)),
        labels_(static_cast<std::size_t>(x.rows), -1),
        squared_(static_cast<std::size_t>(x.rows)),
        sizes_(static_cast<std::size_t>(k)) {}

  KMeansSolution run(index max_iter, Token& token) {
    index iterations = 0;
    while (iterations < max_iter) {
      ++iterations;
      const bool changed = assign_points(token);
      move_centres();
      if (!changed) break;
    }
    return {labels_, inertia(), iterations};
  }

 private:
  bool assign_points(Token& token) {
    const std::vector<index> before = labels_;
    std::fill(sizes_.begin(), sizes_.end(), 0);
    for (index i = 0; i < x_.rows; ++i) {
      token.spend(k_ * x_.cols);
      double least = std::numeric_limits<double>::infinity();
      for (index c = 0; c < k_; ++c) {
        const double squared = squared_distance(x_.row(i), centre(c), x_.cols);
        if (squared < least) {
          least = squared;
          labels_[i] = c;
        }
      }
      squared_[i] = least;
      ++sizes_[labels_[i]];
    }
    for (index c = 0; c < k_; ++c) {
      if (sizes_[c] == 0) refill(c);
    }
    return labels_ != before;
  }

  void refill(index empty) {
    index farthest = -1;
    for (index i = 0; i < x_.rows; ++i) {
      if (sizes_[labels_[i]] > 1 && (farthest < 0 || squared_[i] > squared_[farthest])) {
        farthest = i;
      }
    }
    --sizes_[labels_[farthest]];
    labels_[farthest] = empty;
    squared_[farthest] = 0;
    sizes_[empty] = 1;
  }

  void move_centres() {
    std::fill(centres_.begin(), centres_.end(), 0.0);
    for (index i = 0; i < x_.rows; ++i) {
      double* c = centre(labels_[i]);
      for (index t = 0; t < x_.cols; ++t) c[t] += x_.row(i)[t];
    }
    for (index c = 0; c < k_; ++c) {
      for (index t = 0; t < x_.cols; ++t) centre(c)[t] /= static_cast<double>(sizes_[c]);
    }
  }

  double inertia() const {
    double sum = 0;
    for (index i = 0; i < x_.rows; ++i) {
      sum += squared_distance(x_.row(i), centres_.data() + labels_[i] * x_.cols, x_.cols);
    }
    return sum;
  }

  double* centre(index c) { return centres_.data() + c * x_.cols; }

  MatrixView<double> x_;
  index k_;
  std::vector<double> centres_;
  std::vector<index> labels_;
  std::vector<double> squared_;  // of each point to its own centre
  std::vector<index> sizes_;
};

}  // namespace

template <class T>
KMeansSolution kmeans(MatrixView<T> x, index k, const KMeansOptions& options, Token& token) {
  const std::vector<double> wide(x.data, x.data + x.rows * x.cols);
  const MatrixView<double> points = view(wide, x.rows, x.cols);
  KMeansSolution best;
  for (index run = 0; run < options.n_init; ++run) {
    Random random(options.seed, Purpose::kmeans, static_cast<std::uint32_t>(run));
    Lloyd lloyd(points, k, plus_plus(points, k, random, token));
    KMeansSolution solution = lloyd.run(options.max_iter, token);
    if (run == 0 || solution.inertia < best.inertia) best = std::move(solution);
  }
  return best;
}

template KMeansSolution kmeans<float>(MatrixView<float>, index, const KMeansOptions&, Token&);
template KMeansSolution kmeans<double>(MatrixView<double>, index, const KMeansOptions&, Token&);

}  // namespace pyfast
