#include "core/mass_dpo.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace pyfast {

namespace {

// p = softmax(s) in place; returns log sum exp(s), which is -Z of eq. 8.
double softmax(std::vector<double>& scores) {
  const double highest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& s : scores) sum += s = std::exp(s - highest);
  for (double& s : scores) s /= sum;
  return highest + std::log(sum);
}

}  // namespace

template <class T>
double MassDpo::solve(MatrixView<T> features, const double* policy_logps, const double* ref_logps,
                      index preferred, const MassDpoOptions& options, const LogDetAnswer& answer,
                      int threads, Cancel& cancel, Token& token) {
  const index n = features.rows, d = features.cols;
  for (const T *row = features.row(preferred), *t = row; t < row + d; ++t) {  // is in no vector
    if (!std::isfinite(*t)) throw std::range_error("the features of the preferred are not finite");
  }
  const auto member = [preferred](index j) { return j < preferred ? j : j + 1; };

  const double of_preferred = policy_logps[preferred] - ref_logps[preferred];
  probabilities_.resize(static_cast<std::size_t>(n - 1));
  for (index j = 0; j < n - 1; ++j) {
    const double log_ratio = policy_logps[member(j)] - ref_logps[member(j)];
    probabilities_[j] = options.beta * (log_ratio - of_preferred);
    if (!std::isfinite(probabilities_[j])) {
      throw std::range_error("the scores beta (h_i - h_preferred) overflow");
    }
  }
  const double log_sum = softmax(probabilities_);

  mean_.assign(static_cast<std::size_t>(d), 0.0);
  for (index j = 0; j < n - 1; ++j) {
    const T* row = features.row(member(j));
    token.spend(d);
    for (index t = 0; t < d; ++t) mean_[t] += probabilities_[j] * static_cast<double>(row[t]);
  }
  resize(vectors_, (n - 1) * d, token);
  for (index j = 0; j < n - 1; ++j) {
    const T* row = features.row(member(j));
    double* v = vectors_.data() + j * d;
    const double root = std::sqrt(probabilities_[j]);
    token.spend(2 * d);
    for (index t = 0; t < d; ++t) v[t] = root * (static_cast<double>(row[t]) - mean_[t]);
  }

  const RowCandidates<double> candidates({vectors_.data(), n - 1, d});
  LogDetProblem problem;
  problem.candidates = &candidates;
  problem.k = options.k;
  problem.gamma = options.gamma;
  // 1 - sigmoid(Z) = sigmoid(-Z) = 1 / (1 + exp(-log_sum))
  if (options.fisher) problem.scale = options.beta * options.beta / (1 + std::exp(-log_sum));
  const double logdet = greedy_.solve(problem, answer, threads, cancel, token);
  for (index step = 0; step < options.k; ++step) answer.picks[step] = member(answer.picks[step]);
  return logdet;
}

template double MassDpo::solve(MatrixView<float>, const double*, const double*, index,
                               const MassDpoOptions&, const LogDetAnswer&, int, Cancel&, Token&);
template double MassDpo::solve(MatrixView<double>, const double*, const double*, index,
                               const MassDpoOptions&, const LogDetAnswer&, int, Cancel&, Token&);

}  // namespace pyfast
