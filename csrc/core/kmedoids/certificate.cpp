#include "core/kmedoids/certificate.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/kmedoids/scaled.hpp"

namespace pyfast {

namespace {

constexpr int kSteps = 400;
constexpr int kPatience = 8;           // steps without a better bound, after which they get shorter
constexpr double kShortest = 1e-4;     // of them: nothing is to be gained below
constexpr double kEnough = 1e-12;      // relative gap
constexpr double kRounding = 0x1p-51;  // of one operation, twice over

template <class T>
class Dual {
 public:
  Dual(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids, double cost,
       Work& work)
      : problem_(problem),
        cost_(cost),
        work_(work),
        open_(static_cast<std::size_t>(problem.candidates()), 1),
        prices_(static_cast<std::size_t>(problem.points())),
        scales_(prices_.size()),
        served_(prices_.size()),
        reduced_(open_.size()),
        order_(open_.size()) {
    if (problem.k == 1) {
      start_single();
    } else {
      start(medoids);
    }
  }

  Certificate run() {
    double best = 0, length = 1.5;
    int since = 0;
    for (int step = 0; step < kSteps && length > kShortest; ++step) {
      if (!evaluate()) return {cost_, open_};
      close_candidates();
      if (bound_ - error_ > best) {
        best = bound_ - error_;
        since = 0;
      } else if (++since == kPatience) {
        since = 0;
        length /= 2;
      }
      if (best >= cost_ * (1 - kEnough)) break;
      if (!move(length)) break;
    }
    return {std::min(best, cost_), open_};
  }

 private:
  index n() const { return problem_.points(); }
  index m() const { return problem_.candidates(); }
  double cost_of(index j, index i) const {
    return problem_.weights[i] * static_cast<double>(problem_.distances.row(j)[i]);
  }

  // Prices start half-way between the costs of the nearest medoid and the second one. No price is
  // worth more than the cost of all: a point that is dearer elsewhere has its server in any cheaper
  // set, and sums keep their digits beside points of enormous weight.
  void start(const std::vector<index>& medoids) {
    constexpr double kFar = std::numeric_limits<double>::infinity();
    double mean = 0;
    for (index i = 0; i < n(); ++i) {
      double first = kFar, second = kFar;
      for (const index j : medoids) {
        const double d = static_cast<double>(problem_.distances.row(j)[i]);
        second = std::min(second, std::max(first, d));
        first = std::min(first, d);
      }
      prices_[i] = std::min(problem_.weights[i] * (first / 2 + second / 2), cost_);
      scales_[i] = second;
      mean += second / static_cast<double>(n());
    }
    double most = 0;
    for (index i = 0; i < n(); ++i) {
      scales_[i] = std::min(problem_.weights[i] * (scales_[i] / 2 + mean / 2), cost_);
      most = std::max(most, scales_[i]);
    }
    for (double& scale : scales_) scale /= most > 0 ? most : 1.0;
  }

  // Prices that no cost exceeds make L the least cost of a single medoid.
  void start_single() {
    for (index j = 0; j < m(); ++j) {
      for (index i = 0; i < n(); ++i) prices_[i] = std::max(prices_[i], cost_of(j, i));
    }
  }

  // rho_j of a row, in eight interleaved sums that a compiler may keep side by side.
  double reduced_cost(index j) const {
    constexpr int kLanes = 8;
    double sums[kLanes] = {};
    const T* row = problem_.distances.row(j);
    const double* weights = problem_.weights;
    const double* prices = prices_.data();
    index i = 0;
    for (; i + kLanes <= n(); i += kLanes) {
      for (int c = 0; c < kLanes; ++c) {
        const double gain = prices[i + c] - weights[i + c] * static_cast<double>(row[i + c]);
        sums[c] += gain > 0 ? gain : 0.0;
      }
    }
    double sum = 0;
    for (; i < n(); ++i) {
      const double gain = prices[i] - weights[i] * static_cast<double>(row[i]);
      sum += gain > 0 ? gain : 0.0;
    }
    for (const double part : sums) sum += part;
    return -sum;
  }

  void reduce_costs() {
    constexpr index kPiece = 64;
    const auto count = static_cast<index>(order_.size());
    work_.each((count + kPiece - 1) / kPiece, static_cast<double>(count * n()),
               [&](index piece, int, Work& own) {
                 for (index c = piece * kPiece; c < std::min((piece + 1) * kPiece, count); ++c) {
                   own.spend(n());
                   reduced_[order_[c]] = reduced_cost(order_[c]);
                 }
               });
  }

  // The bound at the present prices. False if too few candidates are open for a cheaper set.
  bool evaluate() {
    order_.clear();
    for (index j = 0; j < m(); ++j) {
      if (open_[j] != 0) order_.push_back(j);
    }
    reduce_costs();
    const index k = problem_.k;
    if (static_cast<index>(order_.size()) < k) return false;
    const auto less = [&](index a, index b) {
      return reduced_[a] < reduced_[b] || (reduced_[a] == reduced_[b] && a < b);
    };
    // The k least come first, the greatest of them last.
    std::nth_element(order_.begin(), order_.begin() + (k - 1), order_.end(), less);
    const double prices = std::accumulate(prices_.begin(), prices_.end(), 0.0);
    double chosen = 0;
    for (index c = 0; c < k; ++c) chosen += reduced_[order_[c]];
    bound_ = prices + chosen;
    error_ = kRounding * static_cast<double>(n() + m() + 8) * (prices - chosen);
    return true;
  }

  // With candidate j in place of the last one chosen, the bound is at least `bound_` less the last
  // one's reduced cost plus its own.
  void close_candidates() {
    const double last = reduced_[order_[problem_.k - 1]];
    for (index c = problem_.k; c < static_cast<index>(order_.size()); ++c) {
      const index j = order_[c];
      if (bound_ - last + reduced_[j] - 2 * error_ >= cost_) open_[j] = 0;
    }
  }

  // Prices rise where nobody serves a point and fall where several do, each in its own scale. False
  // if all are served once: the bound is the optimum.
  bool move(double length) {
    std::fill(served_.begin(), served_.end(), -1.0);
    for (index c = 0; c < problem_.k; ++c) {
      const index j = order_[c];
      for (index i = 0; i < n(); ++i) served_[i] += cost_of(j, i) < prices_[i] ? 1.0 : 0.0;
    }
    double square = 0;
    for (index i = 0; i < n(); ++i) {
      const double slope = scales_[i] * served_[i];
      square += slope * slope;
    }
    if (!(square > 0) || !std::isfinite(square)) return false;
    const double step = length * (cost_ - bound_) / square;
    for (index i = 0; i < n(); ++i) {
      const double price = prices_[i] - step * scales_[i] * scales_[i] * served_[i];
      prices_[i] = std::min(price > 0 ? price : 0.0, cost_);
    }
    return true;
  }

  const KMedoidsProblem<T>& problem_;
  double cost_;
  Work& work_;
  std::vector<char> open_;
  std::vector<double> prices_;  // u
  std::vector<double> scales_;  // of its steps
  std::vector<double> served_;  // by how many chosen candidates each point is served, less one
  std::vector<double> reduced_;
  std::vector<index> order_;  // open candidates, the k of least reduced cost first
  double bound_ = 0, error_ = 0;
};

}  // namespace

template <class T>
Certificate certify(const KMedoidsProblem<T>& problem, const std::vector<index>& medoids,
                    double cost, Work& work) {
  work.spend(problem.points() * problem.k);
  return Dual<T>(problem, medoids, cost, work).run();
}

template Certificate certify(const KMedoidsProblem<float>&, const std::vector<index>&, double,
                             Work&);
template Certificate certify(const KMedoidsProblem<double>&, const std::vector<index>&, double,
                             Work&);

namespace {

template <class T>
double largest_distance(const KMedoidsProblem<T>& problem) {
  const T* d = problem.distances.data;
  return static_cast<double>(*std::max_element(d, d + problem.points() * problem.points()));
}

template <class T>
Certificate certify_scaled(KMedoidsProblem<T> problem, const Shifts& shifts, const Solved& solved,
                           Work& work) {
  // As the problem has it, which is a power of two times the unit of costs.
  const double largest = solved.unit ? largest_distance(problem) : 0.0;
  problem.distances.rows = solved.candidates;
  const double unit = largest > 0 ? largest : 1.0;
  const int exponent = solved.unit ? shifts.weights : shifts.costs();
  const double cost = std::ldexp(solved.cost * unit, exponent);
  Certificate found = certify(problem, solved.medoids, cost, work);
  // Dividing again must not lift the bound above the cost.
  found.bound = std::min(std::ldexp(found.bound / unit, -exponent), solved.cost);
  return found;
}

}  // namespace

template <class T>
Certificate certify_distances(MatrixView<T> distances, const double* weights, const Solved& solved,
                              Work& work) {
  Certificate found;
  const auto k = static_cast<index>(solved.medoids.size());
  with_weights(distances, 0, weights, k, work, [&](const auto& problem, const Shifts& shifts) {
    found = certify_scaled(problem, shifts, solved, work);
  });
  return found;
}

template <class T>
Certificate certify_points(MatrixView<T> x, const double* weights, const Solved& solved,
                           Work& work) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (solved.unit && x.rows > kSmall) {  // costs of unit distances are exact: so must these be
      const std::vector<double> wide = widen(x, work);
      return certify_points(MatrixView<double>{wide.data(), x.rows, x.cols}, weights, solved, work);
    }
  }
  Certificate found;
  const auto k = static_cast<index>(solved.medoids.size());
  with_distances(x, weights, k, work, [&](const auto& problem, const Shifts& shifts) {
    found = certify_scaled(problem, shifts, solved, work);
  });
  return found;
}

#define PYFAST_INSTANTIATE(T)                                                                 \
  template Certificate certify_distances(MatrixView<T>, const double*, const Solved&, Work&); \
  template Certificate certify_points(MatrixView<T>, const double*, const Solved&, Work&);
PYFAST_INSTANTIATE(double)
PYFAST_INSTANTIATE(float)
#undef PYFAST_INSTANTIATE

}  // namespace pyfast
