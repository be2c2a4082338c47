#include "core/kmeans/kmeans.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "core/distance/exact.hpp"
#include "core/kmeans/kmeans_plus_plus.hpp"
#include "core/kmeans/small.hpp"
#include "core/run/memory.hpp"
#include "core/run/random.hpp"

namespace pyfast {

namespace {

// Squared distances of double rows in double; whether all of them kept their digits.
class Squares {
 public:
  double operator()(const double* a, const double* b, index d) {
    const double squared = squared_distance(a, b, d);
    if (!comfortable_square(squared) && !std::equal(a, a + d, b)) odd_ = true;
    return squared;
  }
  bool all_fine() const { return !odd_; }

 private:
  bool odd_ = false;
};

// Or in long double, whose exponents hold the squares of all doubles: slow, and rarely needed.
class WideSquares {
 public:
  template <class B>
  long double operator()(const double* a, const B* b, index d) {
    long double squared = 0;
    for (index t = 0; t < d; ++t) {
      const long double difference = static_cast<long double>(a[t]) - b[t];
      squared += difference * difference;
    }
    return squared;
  }
};

template <class Real, class Square>
class Lloyd {
 public:
  Lloyd(MatrixView<double> x, index k, const std::vector<index>& centres, Square& square)
      : x_(x),
        k_(k),
        square_(square),
        labels_(static_cast<std::size_t>(x.rows), -1),
        squared_(static_cast<std::size_t>(x.rows)),
        sizes_(static_cast<std::size_t>(k)) {
    centres_.reserve(static_cast<std::size_t>(k * x.cols));
    for (const index i : centres) {
      centres_.insert(centres_.end(), x.row(i), x.row(i) + x.cols);
    }
  }

  struct Found {
    std::vector<index> labels;
    Real inertia;
    index iterations;
  };
  Found run(index max_iter, Work& work) {
    index iterations = 0;
    while (iterations < max_iter) {
      ++iterations;
      const bool changed = assign_points(work);
      move_centres(work);
      if (!changed) break;
    }
    return {labels_, inertia(work), iterations};
  }

 private:
  bool assign_points(Work& work) {
    const std::vector<index> before = labels_;
    std::fill(sizes_.begin(), sizes_.end(), 0);
    for (index i = 0; i < x_.rows; ++i) {
      work.spend(k_ * x_.cols);
      Real least = std::numeric_limits<Real>::infinity();
      labels_[i] = 0;  // if none is finite
      for (index c = 0; c < k_; ++c) {
        const Real squared = square_(x_.row(i), centre(c), x_.cols);
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

  void move_centres(Work& work) {
    std::fill(centres_.begin(), centres_.end(), Real{0});
    for (index i = 0; i < x_.rows; ++i) {
      Real* c = centre(labels_[i]);
      work.spend(x_.cols);
      for (index t = 0; t < x_.cols; ++t) c[t] += x_.row(i)[t];
    }
    for (index c = 0; c < k_; ++c) {
      for (index t = 0; t < x_.cols; ++t) centre(c)[t] /= static_cast<Real>(sizes_[c]);
    }
  }

  Real inertia(Work& work) {
    Real sum = 0;
    for (index i = 0; i < x_.rows; ++i) {
      work.spend(x_.cols);
      sum += square_(x_.row(i), centre(labels_[i]), x_.cols);
    }
    return sum;
  }

  Real* centre(index c) { return centres_.data() + c * x_.cols; }

  MatrixView<double> x_;
  index k_;
  Square& square_;
  std::vector<Real> centres_;
  std::vector<index> labels_;
  std::vector<Real> squared_;  // of each point to its own centre
  std::vector<index> sizes_;
};

// The best of all starts; none if `square` is not all fine.
template <class Real, class Square>
KMeansSolution best_of_starts(MatrixView<double> x, index k, const KMeansOptions& options,
                              Square& square, Work& work) {
  typename Lloyd<Real, Square>::Found best{};
  for (index run = 0; run < options.n_init; ++run) {
    Random random(options.seed, Purpose::kmeans, static_cast<std::uint32_t>(run));
    const auto of_pair = [&](index i, index j) -> Real {
      work.spend(x.cols);
      return square(x.row(i), x.row(j), x.cols);
    };
    const std::vector<index> centres = plus_plus<Real>(x.rows, k, of_pair, random);
    auto found = Lloyd<Real, Square>(x, k, centres, square).run(options.max_iter, work);
    if (run == 0 || found.inertia < best.inertia) best = std::move(found);
    if constexpr (std::is_same_v<Real, double>) {
      if (!square.all_fine()) return {};
    }
  }
  return {std::move(best.labels), finite_inertia(best.inertia), best.iterations};
}

KMeansSolution wide_kmeans(MatrixView<double> x, index k, const KMeansOptions& options,
                           Work& work) {
  using Wide = std::numeric_limits<long double>;
  if (Wide::max_exponent < 4096) {  // on some systems it is a double
    throw std::range_error("squared distances leave the range of float64; scale the points");
  }
  WideSquares square;
  return best_of_starts<long double>(x, k, options, square, work);
}

// Whether the squared distances of x are as good as double has them.
template <class T>
bool fine(MatrixView<T> x, const std::vector<double>& squares) {
  if constexpr (sizeof(T) == sizeof(float)) return true;
  for (index i = 0; i < x.rows; ++i) {
    for (index j = 0; j < i; ++j) {
      if (comfortable_square(squares[i * x.rows + j])) continue;
      if (!std::equal(x.row(i), x.row(i) + x.cols, x.row(j))) return false;
    }
  }
  return true;
}

}  // namespace

template <class T>
KMeansSolution kmeans(MatrixView<T> x, index k, const KMeansOptions& options,
                      ExactSquares& workspace, Work& work) {
  if (x.rows <= kSmall) {
    std::vector<double> squares(static_cast<std::size_t>(x.rows * x.rows));
    std::vector<const T*> rows;
    for (index i = 0; i < x.rows; ++i) rows.push_back(x.row(i));
    workspace.measure(rows.data(), x.rows, x.cols, squares.data(), x.rows, work);
    if (fine(x, squares)) return small_kmeans(squares.data(), x.rows, k, options, work);
  }
  const std::vector<double> wide = widen(x, work);
  const MatrixView<double> points{wide.data(), x.rows, x.cols};
  if (x.rows > kSmall) {
    Squares square;
    KMeansSolution found = best_of_starts<double>(points, k, options, square, work);
    if (square.all_fine()) return found;
  }
  return wide_kmeans(points, k, options, work);
}

template KMeansSolution kmeans<float>(MatrixView<float>, index, const KMeansOptions&, ExactSquares&,
                                      Work&);
template KMeansSolution kmeans<double>(MatrixView<double>, index, const KMeansOptions&,
                                       ExactSquares&, Work&);

}  // namespace pyfast
