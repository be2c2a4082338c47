#include "core/logdet/mass_dpo.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "core/logdet/wide.hpp"
#include "core/run/memory.hpp"

namespace pyfast {

namespace {

// softmax(s) in place, but for its denominator, which `sum` takes; returns log sum exp(s), which is
// -Z of eq. 8.
double softmax(std::vector<double>& scores, double& sum) {
  const double highest = *std::max_element(scores.begin(), scores.end());
  sum = 0;
  for (double& s : scores) sum += s = std::exp(s - highest);
  return highest + std::log(sum);
}

// Above this many roundings in a v_i it is made anew with more digits.
constexpr double kManyRoundings = 4096;

// v_i = roots_i (f_i - the mean of all f_j, each with its weight), for the pool's rows. The doubles
// are made of differences from one row, so that what the rows have in common costs no digits.
template <class T>
class Centred final : public Candidates {
 public:
  // `v` holds the doubles; `reference` is the row that was subtracted first.
  Centred(double* v, index d, std::vector<const T*> rows, const double* weights,
          const double* roots, index reference, Work& work)
      : v_(v),
        view_({v, static_cast<index>(rows.size()), d}),
        rows_(std::move(rows)),
        weights_(weights),
        roots_(roots) {
    roundings_ = count_roundings(reference, work);
    if (!(roundings_ <= kManyRoundings)) {
      each_exact(
          work, [&](index i, index t, const Number& exact) { v_[i * dims() + t] = exact.value(); });
      roundings_ = 1;
    }
  }
  index count() const override { return view_.count(); }
  index dims() const override { return view_.dims(); }
  double roundings() const override { return view_.roundings() + 2 * roundings_; }
  bool whole() const override { return false; }
  void copy(index i, double* out) const override { view_.copy(i, out); }
  void copy(index i, float* out) const override { view_.copy(i, out); }
  void squared_norms(index first, index n, double* out) const override {
    view_.squared_norms(first, n, out);
  }
  void dots(const index* rows, index n_rows, const double* columns, index n_columns, double* out,
            index stride) const override {
    view_.dots(rows, n_rows, columns, n_columns, out, stride);
  }
  using Candidates::dots;

  void refine(Work& work) const override {
    resize(rest_, count() * dims(), work);
    each_exact(work, [&](index i, index t, const Number& exact) {
      rest_[i * dims() + t] = (exact - Number(v_[i * dims() + t])).value();
    });
  }
  const double* rest(index i) const override {
    return rest_.empty() ? nullptr : rest_.data() + i * dims();
  }

 private:
  using Number = Wide<5>;

  // How many roundings of |v_i| each v_i is off by, at most. The mean is off by n + 3 of the mean
  // |f_j - f_reference|, f_i - mean by a few of |f_i - f_reference|; lengths tell both.
  double count_roundings(index reference, Work& work) const {
    const index n = count();
    std::vector<double> lengths(static_cast<std::size_t>(n));  // |f_i - mean|
    work.spend(n * dims());
    view_.squared_norms(0, n, lengths.data());
    double total = 0, of_mean = 0;
    for (index i = 0; i < n; ++i) {
      lengths[i] = roots_[i] > 0 ? std::sqrt(lengths[i]) / roots_[i] : 0.0;
      total += weights_[i];
      of_mean += weights_[i] * lengths[i];
    }
    const double middle = lengths[reference];
    const double off = static_cast<double>(n + 3) * (of_mean / total + middle) + 4 * middle;
    double most = 0;
    for (index i = 0; i < n; ++i) {
      if (roots_[i] > 0 && off > 0) most = std::max(most, off / lengths[i]);
    }
    return most + 8;
  }

  template <class Take>
  void each_exact(Work& work, Take&& take) const {
    Number total;
    for (index j = 0; j < count(); ++j) total = total + Number(weights_[j]);
    const Number inverse = total.inverse();
    for (index t = 0; t < dims(); ++t) {
      work.spend(64 * count());
      Number mean;
      for (index j = 0; j < count(); ++j) {
        mean = mean + Number(weights_[j]) * Number(static_cast<double>(rows_[j][t]));
      }
      mean = mean * inverse;
      for (index i = 0; i < count(); ++i) {
        const Number row(static_cast<double>(rows_[i][t]));
        take(i, t, Number(roots_[i]) * (row - mean));
      }
    }
  }

  double* v_;
  RowCandidates<double> view_;
  std::vector<const T*> rows_;
  const double* weights_;
  const double* roots_;
  double roundings_ = 0;
  mutable std::vector<double> rest_;
};

}  // namespace

template <class T>
double MassDpo::solve(MatrixView<T> features, const double* policy_logps, const double* ref_logps,
                      index preferred, const MassDpoOptions& options, const LogDetAnswer& answer,
                      Work& work) {
  const index n = features.rows, d = features.cols;
  for (const T *row = features.row(preferred), *t = row; t < row + d; ++t) {  // is in no vector
    if (!std::isfinite(*t)) throw std::range_error("the features of the preferred are not finite");
  }
  const auto member = [preferred](index j) { return j < preferred ? j : j + 1; };

  const double of_preferred = policy_logps[preferred] - ref_logps[preferred];
  weights_.resize(static_cast<std::size_t>(n - 1));
  for (index j = 0; j < n - 1; ++j) {
    const double log_ratio = policy_logps[member(j)] - ref_logps[member(j)];
    weights_[j] = options.beta * (log_ratio - of_preferred);
    if (!std::isfinite(weights_[j])) {
      throw std::range_error("the scores beta (h_i - h_preferred) overflow");
    }
  }
  double sum;
  const double log_sum = softmax(weights_, sum);
  const index reference = std::max_element(weights_.begin(), weights_.end()) - weights_.begin();

  std::vector<const T*> rows;
  for (index j = 0; j < n - 1; ++j) rows.push_back(features.row(member(j)));
  const T* from = rows[reference];
  mean_.assign(static_cast<std::size_t>(d), 0.0);
  for (index j = 0; j < n - 1; ++j) {
    const T* row = rows[j];
    const double p = weights_[j] / sum;
    work.spend(d);
    for (index t = 0; t < d; ++t) {
      mean_[t] += p * (static_cast<double>(row[t]) - static_cast<double>(from[t]));
    }
  }
  resize(vectors_, (n - 1) * d, work);
  roots_.resize(static_cast<std::size_t>(n - 1));
  for (index j = 0; j < n - 1; ++j) {
    const T* row = rows[j];
    double* v = vectors_.data() + j * d;
    const double root = roots_[j] = std::sqrt(weights_[j] / sum);
    work.spend(2 * d);
    for (index t = 0; t < d; ++t) {
      v[t] = root * (static_cast<double>(row[t]) - static_cast<double>(from[t]) - mean_[t]);
    }
  }

  const Centred<T> candidates(vectors_.data(), d, std::move(rows), weights_.data(), roots_.data(),
                              reference, work);
  LogDetProblem problem;
  problem.candidates = &candidates;
  problem.k = options.k;
  problem.gamma = options.gamma;
  // 1 - sigmoid(Z) = sigmoid(-Z) = 1 / (1 + exp(-log_sum))
  if (options.fisher) problem.scale = options.beta * options.beta / (1 + std::exp(-log_sum));
  const double logdet = greedy_.solve(problem, answer, work);
  for (index step = 0; step < options.k; ++step) answer.picks[step] = member(answer.picks[step]);
  return logdet;
}

template double MassDpo::solve(MatrixView<float>, const double*, const double*, index,
                               const MassDpoOptions&, const LogDetAnswer&, Work&);
template double MassDpo::solve(MatrixView<double>, const double*, const double*, index,
                               const MassDpoOptions&, const LogDetAnswer&, Work&);

}  // namespace pyfast
