#include "core/kmeans.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/distances.hpp"
#include "core/philox.hpp"
#include "core/plus_plus.hpp"
#include "core/row_copies.hpp"
#include "core/small_kmeans.hpp"
#include "core/small_search.hpp"

namespace pyfast {

namespace {

MatrixView<double> view(const std::vector<double>& data, index rows, index cols) {
  return {data.data(), rows, cols};
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
      move_centres(token);
      if (!changed) break;
    }
    return {labels_, inertia(token), iterations};
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
      if (sizes_[c] == 0) refill_cluster(c, labels_, squared_, sizes_);
    }
    return labels_ != before;
  }

  void move_centres(Token& token) {
    std::fill(centres_.begin(), centres_.end(), 0.0);
    for (index i = 0; i < x_.rows; ++i) {
      double* c = centre(labels_[i]);
      token.spend(x_.cols);
      for (index t = 0; t < x_.cols; ++t) c[t] += x_.row(i)[t];
    }
    for (index c = 0; c < k_; ++c) {
      for (index t = 0; t < x_.cols; ++t) centre(c)[t] /= static_cast<double>(sizes_[c]);
    }
  }

  double inertia(Token& token) const {
    double sum = 0;
    for (index i = 0; i < x_.rows; ++i) {
      token.spend(x_.cols);
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
KMeansSolution kmeans(MatrixView<T> x, index k, const KMeansOptions& options,
                      ExactSquares& workspace, Token& token) {
  if (x.rows <= kSmall) {
    std::vector<double> squares(static_cast<std::size_t>(x.rows * x.rows));
    std::vector<const T*> rows;
    for (index i = 0; i < x.rows; ++i) rows.push_back(x.row(i));
    workspace.measure(rows.data(), x.rows, x.cols, squares.data(), x.rows, 1, token);
    return small_kmeans(squares.data(), x.rows, k, options, token);
  }
  const std::vector<double> wide = widen(x, token);
  const MatrixView<double> points = view(wide, x.rows, x.cols);
  KMeansSolution best;
  for (index run = 0; run < options.n_init; ++run) {
    Random random(options.seed, Purpose::kmeans, static_cast<std::uint32_t>(run));
    const auto square = [&](index i, index j) {
      token.spend(x.cols);
      return squared_distance(points.row(i), points.row(j), x.cols);
    };
    std::vector<double> centres;
    centres.reserve(static_cast<std::size_t>(k * x.cols));
    for (const index i : plus_plus(x.rows, k, square, random)) {
      centres.insert(centres.end(), points.row(i), points.row(i) + x.cols);
    }
    Lloyd lloyd(points, k, std::move(centres));
    KMeansSolution solution = lloyd.run(options.max_iter, token);
    if (run == 0 || solution.inertia < best.inertia) best = std::move(solution);
  }
  return best;
}

template KMeansSolution kmeans<float>(MatrixView<float>, index, const KMeansOptions&, ExactSquares&,
                                      Token&);
template KMeansSolution kmeans<double>(MatrixView<double>, index, const KMeansOptions&,
                                       ExactSquares&, Token&);

}  // namespace pyfast
